"""Specimens and micrographs with known truth."""
