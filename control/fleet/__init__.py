"""The fleet: which boxes there are, whether they are alive, and how they prove who they are."""
