"""Moves verified content from sources into an appliance’s store, in its window."""
