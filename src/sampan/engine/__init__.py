"""The domain and the Python API: images, pods, containers, events, stats, garbage, recovery.

Start at :class:`sampan.engine.engine.Engine`.
"""
