"""Codecs that do no I/O: SPDY, netlink, CRI log lines, control-socket frames."""
