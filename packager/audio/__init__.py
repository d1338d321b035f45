"""The sound: which streams become which tracks, encoded and levelled."""
