"""The operator's command. It speaks to a node's administration listener through generated stubs, and nothing else."""
