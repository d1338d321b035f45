"""Titles: the catalog, the origins that hold them, and when they are live."""
