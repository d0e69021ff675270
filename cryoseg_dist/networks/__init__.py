"""The U-Net family, its losses, weight map and augmentation."""
