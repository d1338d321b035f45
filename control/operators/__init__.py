"""Operators: who may act, the audit log, and their side of the API."""
