"""Exec, attach and port-forward endpoints over SPDY/3.1 and WebSocket."""
