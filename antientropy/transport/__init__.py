"""How calls between replicas travel: the seam, gRPC, and an in-process twin with faults."""
