"""Helpers of the developers; not installed."""
