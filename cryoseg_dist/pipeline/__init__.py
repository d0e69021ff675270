"""Configuration, the graph of stages and the run."""
