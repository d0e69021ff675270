"""One file a stage: plan and compute, never opening a file."""
