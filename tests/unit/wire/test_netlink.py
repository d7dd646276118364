"""Netlink's codec, with no kernel."""

import errno
import struct
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.wire import netlink, nfnetlink, rtnetlink, rttraffic
from sampan.wire.netlink import BadMessage, Exchange

DATA = st.binary(max_size=200)
KIND = st.integers(0, 0x3FFF)


def reply(sequence: int, code: int, *, flags: int = 0, tail: bytes = b"") -> bytes:
    echoed = struct.pack("=IHHII", 16, 16, 5, sequence, 0)
    return netlink.message(netlink.NLMSG_ERROR, flags, sequence, struct.pack("=i", code) + echoed + tail)


class TestAttributes:
    @given(st.dictionaries(KIND, DATA, max_size=10))
    def test_round_trip(self, values: dict[int, bytes]) -> None:
        data = b"".join(netlink.attribute(kind, value) for kind, value in values.items())
        assert len(data) % 4 == 0
        assert netlink.attributes(data) == values

    @given(st.lists(st.tuples(KIND, DATA), max_size=10))
    def test_nesting(self, values: list[tuple[int, bytes]]) -> None:
        data = netlink.nested(7, *(netlink.attribute(kind, value) for kind, value in values))
        assert list(netlink.each_attribute(netlink.attributes(data)[7])) == values

    def test_longest(self) -> None:
        assert netlink.attributes(netlink.attribute(1, bytes(netlink.MAX_VALUE))) == {1: bytes(netlink.MAX_VALUE)}

    def test_a_value_that_does_not_fit_is_refused_not_cut(self) -> None:
        with pytest.raises(BadMessage, match="65532 bytes"):
            netlink.attribute(1, bytes(netlink.MAX_VALUE + 1))
        with pytest.raises(BadMessage):
            netlink.nested(1, bytes(70000))

    def test_a_string_with_nul_is_refused(self) -> None:
        with pytest.raises(BadMessage):
            netlink.text(1, "eth0\0evil")

    @pytest.mark.parametrize("name", ["", "a" * 16, "é" * 8])
    def test_interface_names_are_bounded(self, name: str) -> None:
        with pytest.raises(BadMessage):
            rtnetlink.add_link(name, "bridge")

    @given(st.binary(max_size=300))
    def test_any_bytes_are_read_or_refused(self, data: bytes) -> None:
        for read in (netlink.attributes, lambda d: list(netlink.messages(d)), rtnetlink.parse_link):
            try:
                read(data)
            except BadMessage:
                pass

    def test_a_length_that_points_outside(self) -> None:
        with pytest.raises(BadMessage, match="claims 100 of 8"):
            netlink.attributes(struct.pack("=HHI", 100, 1, 0))
        with pytest.raises(BadMessage, match="claims 2"):
            netlink.attributes(struct.pack("=HHI", 2, 1, 0))

    def test_numbers(self) -> None:
        data = netlink.u8(1, 5) + netlink.u16(2, 500) + netlink.u32(3, 70000) + netlink.u64(4, 1 << 40)
        values = netlink.attributes(data)
        assert [netlink.number(values[i]) for i in (1, 2, 3, 4)] == [5, 500, 70000, 1 << 40]
        assert netlink.number(None) == 0
        assert netlink.string(b"eth0\0") == "eth0"


class TestExchange:
    def test_acknowledged(self) -> None:
        exchange = Exchange(10)
        exchange.request(16, 0, b"")
        exchange.request(16, 0, b"")
        exchange.feed(reply(10, 0))
        assert not exchange.complete
        exchange.feed(reply(11, -errno.EEXIST))
        assert exchange.complete
        assert exchange.errors[0] is None
        with pytest.raises(FileExistsError):
            exchange.raise_first()

    def test_the_kernels_words(self) -> None:
        exchange = Exchange(1)
        exchange.request(16, 0, b"")
        said = netlink.text(1, "Device can not be enslaved")
        exchange.feed(reply(1, -errno.EINVAL, flags=netlink.NLM_F_CAPPED | netlink.NLM_F_ACK_TLVS, tail=said))
        with pytest.raises(OSError, match="Device can not be enslaved"):
            exchange.raise_first()

    def test_dump(self) -> None:
        exchange = Exchange(1)
        exchange.request(18, netlink.NLM_F_DUMP, b"")
        part = netlink.message(16, netlink.NLM_F_MULTI, 1, bytes(16))
        exchange.feed(part + part)
        assert not exchange.complete
        exchange.feed(part + netlink.message(netlink.NLMSG_DONE, netlink.NLM_F_MULTI, 1, bytes(4)))
        assert exchange.complete
        assert len(exchange.answers[0]) == 3
        assert not exchange.interrupted

    def test_interrupted_dump(self) -> None:
        exchange = Exchange(1)
        exchange.request(18, netlink.NLM_F_DUMP, b"")
        exchange.feed(netlink.message(netlink.NLMSG_DONE, netlink.NLM_F_MULTI | netlink.NLM_F_DUMP_INTR, 1, bytes(4)))
        assert exchange.interrupted

    def test_answers_to_others_are_ignored(self) -> None:
        exchange = Exchange(100)
        exchange.request(18, 0, b"")
        exchange.feed(reply(99, -errno.EPERM) + reply(101, -errno.EPERM))
        assert not exchange.complete
        assert exchange.errors == [None]

    def test_sequence_wraps(self) -> None:
        exchange = Exchange(0xFFFFFFFF)
        exchange.request(18, 0, b"")
        exchange.request(18, 0, b"")
        exchange.feed(reply(0xFFFFFFFF, 0) + reply(0, 0))
        assert exchange.complete

    def test_a_batch_waits_for_no_begin_and_end(self) -> None:
        exchange = Exchange(1)
        for kind, flags, body in (nfnetlink.batch_begin(), nfnetlink.batch_end()):
            exchange.request(kind, flags, body, ack=False)
        assert exchange.complete


class TestElements:
    def test_concatenation_fills_registers(self) -> None:
        assert nfnetlink.concatenation(b"\x06", b"\x1f\x90") == b"\x06\0\0\0\x1f\x90\0\0"

    def test_round_trip(self) -> None:
        elements = [
            nfnetlink.Element("ports4", b"\x06\0\0\0\x1f\x90\0\0", b"\x0a\x58\0\x05\0\x50\0\0"),
            nfnetlink.Element("sources4", b"\x0a\x58\0\x05", chain="leave_1"),
        ]
        for (_kind, _flags, body), element in zip(nfnetlink.add_elements("t", elements), elements, strict=True):
            (back,) = nfnetlink.parse_elements(netlink.Message(0, 0, 0, 0, body))
            assert repr(back) == repr(element)


def test_rates_above_32_bits() -> None:
    _kind, _flags, body = rttraffic.token_bucket(1, 10_000_000_000, 1000)
    assert rttraffic.parse_qdisc(body).rate == 10_000_000_000
    assert rttraffic.parse_qdisc(rttraffic.token_bucket(1, 1000, 1000)[2]).rate == 1000


def test_import_diet() -> None:
    code = (
        "import sys, sampan.wire.netlink, sampan.wire.rtnetlink, sampan.wire.nfnetlink\n"
        "print(','.join(m for m in ('typing','enum','re','dataclasses','json','msgspec') if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0]={sys.path!r}; {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == ""
