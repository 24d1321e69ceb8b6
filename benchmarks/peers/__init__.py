"""Digest exchanges of published libraries and of this one, on the same simulated state, in one run."""
