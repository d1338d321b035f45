"""Steering: who is near, who serves, and what viewers are told."""
