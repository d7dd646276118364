"""Sampan: a complete container runtime stack.

Importing this package costs nothing; the Python API is reached through :mod:`sampan.engine`.
"""

__version__ = "0.1.0"
