"""Moving network devices of the host into a container (``linux.netDevices``; config-linux.md 1.3, "Network Devices").

The kernel takes a device's addresses away when it moves and leaves it down. So the addresses that are meant to last are
read before and given again after, and the device is set up. What was moved is given back by the same way, should the
creation fail: otherwise a virtual device would end with the container's namespace, and another pod's would keep it.
"""

from __future__ import annotations

import _socket
import errno
import os
import struct
import sys

from sampan.linux import namespaces as ns
from sampan.runtime import trace
from sampan.wire import netlink, rtnetlink

_NETLINK_ROUTE = 0
_SIZE = 1 << 18
_ADDRESS = struct.Struct("=BBBBI")
_IFA_F_PERMANENT = 0x80
#: What makes an address, beside its header; the label holds the device's old name.
_KEPT = (rtnetlink.IFA_ADDRESS, rtnetlink.IFA_LOCAL, rtnetlink.IFA_BROADCAST)


class NetDevices:
    """The devices that a container was given.

    Args:
        namespace: The container's network namespace, a descriptor, which this owns.
    """

    __slots__ = ("_here", "_moved", "_there")

    def __init__(self, namespace: int) -> None:
        self._there = _Side(namespace)
        self._here: _Side | None = None
        #: Index in the container, name on the host, whether it was up.
        self._moved: list[tuple[int, str, bool]] = []

    def take(self, name: str, new_name: str) -> None:
        """Move the host's device ``name`` in, as ``new_name``, in which ``%d`` stands for a free number.

        Raises:
            OSError: There is no such device, it can't be moved, or the name is taken.
        """
        if self._here is None:
            self._here = _Side(os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        device = self._here.device(name)
        if "%" not in new_name and any(one.name == new_name for one in self._there.devices()):
            # Found out by the kernel only after the move.
            raise OSError(errno.EEXIST, "the container has a device of that name already", new_name)
        _transfer(device.index, new_name, self._here, self._there, self._moved, (name, device.up))

    def give_back(self) -> None:
        """Move the devices back, as far as that goes."""
        moved, self._moved = self._moved, []
        for index, name, up in reversed(moved):
            try:
                assert self._here is not None
                _transfer(index, name, self._there, self._here, [], ("", False), up=up)
            except OSError:
                continue

    def close(self) -> None:
        """Close what this holds; a second call does nothing."""
        self._there.close()
        if self._here is not None:
            self._here.close()


class _Side:
    """One network namespace, and a socket to its tables."""

    __slots__ = ("_end", "namespace")

    def __init__(self, namespace: int) -> None:
        self.namespace = namespace
        self._end: _socket.socket | None = None

    def devices(self) -> list[rtnetlink.Link]:
        return [rtnetlink.parse_link(answer.body) for answer in self.ask(rtnetlink.get_links())]

    def device(self, name: str) -> rtnetlink.Link:
        for one in self.devices():
            if one.name == name:
                return one
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), name)

    def addresses(self, index: int) -> list[bytes]:
        """The requests, without the index, that make the device's lasting addresses again."""
        found = []
        for answer in self.ask(rtnetlink.get_addresses()):
            family, prefix, flags, scope, on = _ADDRESS.unpack_from(answer.body)
            if on != index or scope != rtnetlink.RT_SCOPE_UNIVERSE or not flags & _IFA_F_PERMANENT:
                continue
            fields = netlink.attributes(answer.body, _ADDRESS.size)
            body = b"".join(netlink.attribute(kind, fields[kind]) for kind in _KEPT if kind in fields)
            # Nobody else has come by it on the way: there is no need to look for a duplicate again.
            flags = netlink.number(fields.get(rtnetlink.IFA_FLAGS)) | rtnetlink.IFA_F_NODAD
            found.append(bytes((family, prefix, 0, scope)) + body + netlink.u32(rtnetlink.IFA_FLAGS, flags))
        return found

    def ask(self, request: rtnetlink.Request) -> list[netlink.Message]:
        if self._end is None:
            self._end = _open(self.namespace)
        exchange = netlink.Exchange(1)
        self._end.send(exchange.request(*request))
        while not exchange.complete:
            data, sender = self._end.recvfrom(_SIZE)
            if sender[0] == 0:  # the kernel, and nobody who knows our address
                exchange.feed(data)
        exchange.raise_first()
        return exchange.answers[0]

    def close(self) -> None:
        end, self._end = self._end, None
        if end is not None:
            end.close()
        fd, self.namespace = self.namespace, -1
        if fd >= 0:
            os.close(fd)


def _open(namespace: int) -> _socket.socket:
    """A socket in the namespace: it stays there. The caller, who is single-threaded, comes back."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        ns.setns(namespace, ns.CLONE_NEWNET)
        try:
            return _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, _NETLINK_ROUTE)
        finally:
            ns.setns(home, ns.CLONE_NEWNET)
    finally:
        os.close(home)


def _transfer(
    index: int,
    name: str,
    source: _Side,
    target: _Side,
    record: list[tuple[int, str, bool]],
    before: tuple[str, bool],
    *,
    up: bool = True,
) -> None:
    """Move a device, with its addresses; as soon as it is on the other side, that is recorded."""
    addresses = source.addresses(index)
    known = {one.index for one in target.devices()}
    failure: OSError | None = None
    try:
        source.ask(rtnetlink.set_link(index, netns_fd=target.namespace, name=name))
    except OSError as error:  # which may be of the new name alone: it is given last
        failure = error
    arrived = next((one.index for one in target.devices() if one.index not in known), 0)
    if arrived:
        record.append((arrived, *before))
    if failure is not None:
        raise failure
    arrived = arrived or index  # the two sides are one
    for address in addresses:
        body = address[:4] + arrived.to_bytes(4, sys.byteorder) + address[4:]
        target.ask((rtnetlink.RTM_NEWADDR, netlink.NLM_F_CREATE | netlink.NLM_F_REPLACE, body))
    if up:
        target.ask(rtnetlink.set_link(arrived, up=True))


def give(devices: dict[str, dict[str, str]], given: NetDevices) -> None:
    """Give each device, renamed where that is asked, to a container.

    Raises:
        OSError: One can't be moved; those before it are the container's.
    """
    for name, settings in devices.items():
        trace.step("move network device", name)
        given.take(name, settings.get("name") or name)
