"""Queueing disciplines and filters over rtnetlink, without I/O: what limiting an interface's rate takes.

tc(8), linux/pkt_sched.h, linux/pkt_cls.h, linux/tc_act/tc_mirred.h.
"""

from __future__ import annotations

import struct

from sampan.wire.netlink import (
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    attribute,
    attributes,
    nested,
    string,
    text,
    u32,
    u64,
)
from sampan.wire.rtnetlink import RTM_NEWQDISC, RTM_NEWTFILTER, Request

RTM_GETQDISC = 38
_KIND, _OPTIONS = 1, 2
_TBF_PARMS, _TBF_RATE64, _TBF_BURST = 1, 4, 6
_U32_SEL, _U32_ACT = 5, 7
_ACT_KIND, _ACT_OPTIONS = 1, 2
_MIRRED_PARMS = 2
_ROOT = 0xFFFFFFFF
_INGRESS = 0xFFFFFFF1
_ETHERNET = 1
_STOLEN, _EGRESS_REDIRECT = 4, 1
_TERMINAL = 1
_ALL_PROTOCOLS = 3
_LATENCY_SECONDS = 0.025

_HEADER = struct.Struct("=BxxxiIII")
_RATE = struct.Struct("=BBHhHI")


class Qdisc:
    """A queueing discipline as the kernel describes it."""

    __slots__ = ("index", "kind", "options")

    def __init__(self, index: int, kind: str, options: bytes) -> None:
        self.index = index
        self.kind = kind
        self.options = options

    @property
    def rate(self) -> int:
        """Bytes a second of a token bucket."""
        parameters = attributes(self.options)
        if _TBF_RATE64 in parameters:
            return int(struct.unpack("=Q", parameters[_TBF_RATE64])[0])
        return int(_RATE.unpack_from(parameters[_TBF_PARMS])[5]) if _TBF_PARMS in parameters else 0


def token_bucket(index: int, rate: int, burst: int) -> Request:
    """Limit what leaves by an interface.

    Args:
        index: The interface.
        rate: Bytes a second.
        burst: Bytes that may go at once.
    """
    limit = min(int(rate * _LATENCY_SECONDS) + burst, 0xFFFFFFFF)
    # The link layer is named, so that the kernel computes times itself and wants no table of them.
    plain = _RATE.pack(0, _ETHERNET, 0, 0, 0, min(rate, 0xFFFFFFFF))
    parameters = attribute(_TBF_PARMS, plain + bytes(_RATE.size) + struct.pack("=III", limit, 0, 0))
    if rate > 0xFFFFFFFF:
        parameters += u64(_TBF_RATE64, rate)
    body = _HEADER.pack(0, index, 0x00010000, _ROOT, 0) + text(_KIND, "tbf")
    body += nested(_OPTIONS, parameters, u32(_TBF_BURST, burst))
    return RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, body


def ingress(index: int) -> Request:
    """Let filters see what comes in by an interface."""
    body = _HEADER.pack(0, index, 0xFFFF0000, _INGRESS, 0) + text(_KIND, "ingress")
    return RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, body


def redirect(index: int, to: int) -> Request:
    """Send everything that comes in by an interface out through another one."""
    every = struct.pack("=BBBxHHhhI", _TERMINAL, 0, 1, 0, 0, 0, 0, 0) + struct.pack("=IIii", 0, 0, 0, 0)
    mirred = struct.pack("=IIiiiiI", 0, 0, _STOLEN, 0, 0, _EGRESS_REDIRECT, to)
    action = nested(1, text(_ACT_KIND, "mirred"), nested(_ACT_OPTIONS, attribute(_MIRRED_PARMS, mirred)))
    protocol = struct.unpack("=H", struct.pack(">H", _ALL_PROTOCOLS))[0]
    body = _HEADER.pack(0, index, 0, 0xFFFF0000, 1 << 16 | protocol) + text(_KIND, "u32")
    body += nested(_OPTIONS, attribute(_U32_SEL, every), nested(_U32_ACT, action))
    return RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, body


def get_qdiscs(index: int) -> Request:
    """Ask for an interface's disciplines (the kernel may give others' too)."""
    return RTM_GETQDISC, NLM_F_DUMP, _HEADER.pack(0, index, 0, 0, 0)


def parse_qdisc(body: bytes) -> Qdisc:
    """Read an RTM_NEWQDISC."""
    fields = attributes(body, _HEADER.size)
    return Qdisc(int(_HEADER.unpack_from(body)[1]), string(fields.get(_KIND)), fields.get(_OPTIONS, b""))
