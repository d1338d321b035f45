"""The demo, load tests and comparisons."""
