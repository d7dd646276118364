"""Kubernetes CRI v1 over gRPC: translation between its messages and the engine, nothing else."""
