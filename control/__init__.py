"""Catalog, registry, demand, placement, steering, and the API they are driven by."""
