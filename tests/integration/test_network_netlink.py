"""The socket to the kernel's tables, and who else can write to it."""

import errno
import socket
import struct

import pytest

from sampan.network.rtnl import Rtnl
from sampan.wire import netlink

pytestmark = pytest.mark.root


def test_only_the_kernel_is_believed() -> None:
    denied = netlink.message(netlink.NLMSG_ERROR, 0, 1, struct.pack("=i", -errno.EPERM) + bytes(16))
    with Rtnl() as kernel, socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as forger:
        port = kernel._socket.getsockname()[0]
        forger.sendto(denied, (port, 0))  # what an answer to its first request would look like
        assert kernel.link("lo").name == "lo"
