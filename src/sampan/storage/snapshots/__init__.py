"""Snapshots: the layers of root file systems, and the writable tops of containers."""
