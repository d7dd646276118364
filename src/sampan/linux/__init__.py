"""The kernel, one file for a facility: typed wrappers over system calls. No policy."""
