"""The daemon: configuration, sockets, wiring, signals, systemd, metrics endpoint."""
