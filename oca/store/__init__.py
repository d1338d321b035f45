"""The content store: disks, files on their way in, and the check of what is held."""
