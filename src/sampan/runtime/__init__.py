"""The OCI runtime: from a bundle to a process; and handlers for other OCI runtimes."""
