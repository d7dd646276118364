"""CNI: conflists, plugin execution, cached results, and the built-in plugins."""
