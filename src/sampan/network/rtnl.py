"""A socket to the kernel's tables of links, addresses and routes, in the namespace it was opened in."""

import errno
import itertools
import os
import socket
from collections.abc import Iterable
from typing import Self

from sampan.errors import StageFailed
from sampan.network import netns
from sampan.wire import netlink, rtnetlink
from sampan.wire.rtnetlink import Address, Link, Request, Route

_SOL_NETLINK = 270
_NETLINK_ROUTE = 0
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12
_RECEIVE = 1 << 18
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_ROOM = 1 << 23
_DUMP_TRIES = 8


class Kernel:
    """One netlink socket. For one thread at a time; owns its descriptor.

    Args:
        protocol: ``NETLINK_*`` family.
        netns_fd: Namespace to be opened in; -1: the calling thread's.
    """

    def __init__(self, protocol: int, netns_fd: int = -1) -> None:
        with netns.inside(netns_fd):
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
            if protocol == _NETLINK_ROUTE:
                self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
            self._make_room()
            self._socket.bind((0, 0))
        except OSError:
            self._socket.close()
            raise
        self._sequence = itertools.count(1, 1024)

    def _make_room(self) -> None:
        """Have buffers that hold a large batch, and its answers: the kernel sends those before any is taken."""
        for forced, plain in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, forced, _ROOM)
            except PermissionError:
                self._socket.setsockopt(socket.SOL_SOCKET, plain, _ROOM)

    def close(self) -> None:
        """Close the socket; a second time does nothing."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def exchange(self, requests: Iterable[Request], *, unacknowledged: tuple[int, ...] = ()) -> netlink.Exchange:
        """Send requests in one go and take all their answers; errors are left in the exchange."""
        exchange = netlink.Exchange(next(self._sequence))
        data = b"".join(
            exchange.request(kind, flags, body, ack=kind not in unacknowledged) for kind, flags, body in requests
        )
        if data:
            self._socket.sendall(data)
        while not exchange.complete:
            received, _ancillary, flags, (sender, _groups) = self._socket.recvmsg(_RECEIVE)
            if sender != 0:
                continue  # not the kernel: whoever has CAP_NET_ADMIN in the namespace can send to this socket
            if flags & socket.MSG_TRUNC:
                raise OSError(errno.EMSGSIZE, "netlink answer cut short")
            exchange.feed(received)
        return exchange

    def dump(self, request: Request) -> list[netlink.Message]:
        """All answers to a dump, taken again when the kernel says that its tables changed meanwhile."""
        for _ in range(_DUMP_TRIES):
            exchange = self.exchange([request])
            exchange.raise_first()
            if not exchange.interrupted:
                break
        return exchange.answers[0]


class Rtnl(Kernel):
    """Links, addresses, routes and neighbours of one network namespace."""

    def __init__(self, netns_fd: int = -1) -> None:
        super().__init__(_NETLINK_ROUTE, netns_fd)

    def do(self, stage: str, *requests: Request, tolerate: tuple[int, ...] = ()) -> None:
        """Send requests together; the first error, other than those ``tolerate``d, is raised with ``stage``'s name."""
        for error in self.exchange(requests).errors:
            if error is not None and error.errno not in tolerate:
                raise StageFailed(stage, error) from error

    def find_link(self, name: str = "", index: int = 0) -> Link | None:
        """The link of that name or index, or None."""
        exchange = self.exchange([rtnetlink.get_link(name, index)])
        error = exchange.errors[0]
        if error is not None:
            if error.errno == errno.ENODEV:
                return None
            raise StageFailed(f"look up link {name or index}", error) from error
        return rtnetlink.parse_link(exchange.answers[0][0].body)

    def link(self, name: str = "", index: int = 0) -> Link:
        """The link of that name or index.

        Raises:
            StageFailed: There is none.
        """
        found = self.find_link(name, index)
        if found is None:
            raise StageFailed(f"look up link {name or index}", OSError(errno.ENODEV, os.strerror(errno.ENODEV)))
        return found

    def links(self) -> list[Link]:
        """All links."""
        return [rtnetlink.parse_link(answer.body) for answer in self.dump(rtnetlink.get_links())]

    def addresses(self, index: int = 0, family: int = 0) -> list[Address]:
        """Addresses, of one link if ``index`` is given."""
        found = [rtnetlink.parse_address(a.body) for a in self.dump(rtnetlink.get_addresses(family, index))]
        return [address for address in found if not index or address.index == index]

    def routes(self, family: int) -> list[Route]:
        """Routes of all tables."""
        return [rtnetlink.parse_route(answer.body) for answer in self.dump(rtnetlink.get_routes(family))]
