"""Fills: orders, what the lines of sites carry, and how far every appliance is."""
