"""OCI distribution: resolving hosts, authenticating, pulling, pushing, copying, serving."""
