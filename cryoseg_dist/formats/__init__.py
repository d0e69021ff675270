"""The only readers and writers of foreign files."""
