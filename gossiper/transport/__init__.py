"""Ways to reach a peer: gRPC, and an in-process twin."""
