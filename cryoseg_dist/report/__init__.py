"""Events and arrays to one HTML page."""
