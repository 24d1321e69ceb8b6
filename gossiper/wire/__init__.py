"""Protobuf bytes <-> the core's messages, and all validation of what peers say."""
