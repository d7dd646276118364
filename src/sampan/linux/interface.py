"""Network interfaces, as far as an ioctl on a socket goes (netdevice(7)); the rest is netlink's."""

import _socket
import fcntl
import struct

_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1


def set_up(name: str) -> None:
    """Bring the interface ``name`` of the caller's network namespace up."""
    end = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC, 0)
    try:
        request = struct.pack("16sH22x", name.encode(), 0)
        flags = struct.unpack_from("H", fcntl.ioctl(end.fileno(), _SIOCGIFFLAGS, request), 16)[0]
        fcntl.ioctl(end.fileno(), _SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), flags | _IFF_UP))
    finally:
        end.close()
