"""The encryption of tracks, and the keys for it."""
