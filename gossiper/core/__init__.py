"""Decides; no I/O, no clock, no randomness of its own, no asyncio, no protobuf."""
