"""The ladder: which renditions a source gets, and why."""
