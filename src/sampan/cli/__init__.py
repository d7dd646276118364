"""The `sampan` and `sampan-runtime` commands: parse, call the engine or the runtime, render."""
