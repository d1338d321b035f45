"""The source: what there is in the file that a person hands us."""
