"""Content, snapshots, metadata and leases; alone in writing the data root."""
