"""The GPU paths on one card: limits of the card, correctness of each kernel, then rates."""
