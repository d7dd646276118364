"""Moving network devices of the host into a container (``linux.netDevices``)."""

from __future__ import annotations

import _socket
import os

from sampan.runtime import trace
from sampan.wire import netlink, rtnetlink

_NETLINK_ROUTE = 0
_SIZE = 1 << 16


def move(devices: dict[str, dict[str, str]], pid: int) -> None:
    """Give each device, renamed where that is asked, to the network namespace of ``pid``.

    Raises:
        OSError: There is no such device, or it can't be moved.
    """
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for name, settings in devices.items():
            trace.step("move network device", name)
            _move(name, settings.get("name") or "", namespace)
    finally:
        os.close(namespace)


def _move(name: str, new_name: str, namespace: int) -> None:
    answer = _ask(*rtnetlink.get_link(name=name))
    if not answer:
        raise OSError(19, os.strerror(19), name)
    index = rtnetlink.parse_link(answer[0].body).index
    _ask(*rtnetlink.set_link(index, netns_fd=namespace, name=new_name or name))


def _ask(kind: int, flags: int, body: bytes) -> list[netlink.Message]:
    end = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, _NETLINK_ROUTE)
    try:
        exchange = netlink.Exchange(1)
        end.send(exchange.request(kind, flags, body))
        while not exchange.complete:
            exchange.feed(end.recv(_SIZE))
        exchange.raise_first()
        return exchange.answers[0]
    finally:
        end.close()
