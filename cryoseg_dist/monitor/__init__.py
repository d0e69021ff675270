"""Events to Prometheus, to a log and to the terminal."""
