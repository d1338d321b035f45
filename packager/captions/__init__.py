"""The captions: read, fitted to the presentation, written."""
