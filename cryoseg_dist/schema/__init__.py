"""What the data are: arrays, columns, regions, settings and units of work."""
