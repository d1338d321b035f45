"""Placement: which content goes to which appliance, as plans and as problems with their solvers."""
