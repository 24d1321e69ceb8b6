"""Stores that can be repaired out of the box."""
