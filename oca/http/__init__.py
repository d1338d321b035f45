"""The segment server: from an accepted socket to bytes that leave by sendfile."""
