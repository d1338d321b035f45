"""Triggers of upstream CDNs (RFC 8007)."""
