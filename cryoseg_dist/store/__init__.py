"""The Zarr project, its ledger and the network weights."""
