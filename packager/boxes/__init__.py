"""The boxes of ISO base media files, read and written."""
