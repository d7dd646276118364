"""Answers put together from encoded parts are what protobuf makes of the whole."""

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from sampan.cri import api_pb2 as pb
from sampan.cri import lists
from sampan.cri.encoding import ANY_TIME, Encoded, Field, Stamped

_TEXTS = st.text(max_size=300)


@given(st.lists(st.builds(pb.PodSandbox, id=_TEXTS, created_at=st.integers(0, 1 << 62)), max_size=20))
def test_a_list_is_what_protobuf_makes_of_it(pods: list[pb.PodSandbox]) -> None:
    field = Field(pb.ListPodSandboxResponse, "items")
    assert (
        field.of(pod.SerializeToString() for pod in pods) == pb.ListPodSandboxResponse(items=pods).SerializeToString()
    )


def test_long_values() -> None:
    field = Field(pb.ListPodSandboxResponse, "items")
    for length in (0, 127, 128, 16383, 16384, 3_000_000):
        pod = pb.PodSandbox(id="x" * length)
        answer = pb.ListPodSandboxResponse.FromString(field.of([pod.SerializeToString()]))
        assert answer == pb.ListPodSandboxResponse(items=[pod])


class _Record(NamedTuple):
    id: str
    text: str


def test_a_record_is_encoded_when_it_has_changed() -> None:
    made: list[str] = []

    def encode(record: _Record) -> bytes:
        made.append(record.text)
        return record.text.encode()

    encoded = Encoded[_Record, bytes]()
    one, two, three = _Record("1", "one"), _Record("2", "two"), _Record("3", "three")
    assert encoded.of([two, one], encode, all=True) == {"2": b"two", "1": b"one"}
    assert list(encoded.of([two, _Record("1", "one")], encode, all=True)) == ["2", "1"]
    assert made == ["two", "one"]
    changed = _Record("1", "other")
    assert encoded.of([changed, two], encode, all=True) == {"1": b"other", "2": b"two"}
    assert made == ["two", "one", "other"]
    # What a filter let through is told, and nothing is kept or forgotten for it.
    assert encoded.of([three], encode, all=False) == {"3": b"three"}
    assert encoded.of([two, three], encode, all=False) == {"2": b"two", "3": b"three"}
    assert made == ["two", "one", "other", "three", "three"]
    # What is gone from a list of all is forgotten.
    encoded.of([changed], encode, all=True)
    encoded.of([two], encode, all=True)
    assert made == ["two", "one", "other", "three", "three", "two"]


@given(st.integers(1 << 56, (1 << 63) - 1), _TEXTS, st.integers(0, 1 << 61))
def test_an_encoding_is_told_with_another_time(timestamp: int, text: str, figure: int) -> None:
    def message(time: int) -> pb.FilesystemUsage:
        return pb.FilesystemUsage(
            timestamp=time, fs_id=pb.FilesystemIdentifier(mountpoint=text), used_bytes=pb.UInt64Value(value=figure)
        )

    stamped = Stamped(message(ANY_TIME).SerializeToString())
    assert stamped.at(timestamp) == message(timestamp).SerializeToString()
    # Lengths hold too where messages are in messages.
    cpu = Stamped(pb.ContainerStats(cpu=pb.CpuUsage(timestamp=ANY_TIME)).SerializeToString())
    assert pb.ContainerStats.FromString(cpu.at(timestamp)).cpu.timestamp == timestamp


def test_no_text_has_the_time_that_stands_for_any() -> None:
    encoded = pb.CpuUsage(timestamp=ANY_TIME).SerializeToString()[1:]
    assert len(encoded) == 9
    assert all(0x80 <= byte < 0xC0 for byte in encoded[:8])


def test_a_filter_that_lets_all_pass() -> None:
    assert lists.everything(pb.ContainerFilter())
    assert not lists.everything(pb.ContainerFilter(id="x"))
    assert not lists.everything(pb.ContainerFilter(state=pb.ContainerStateValue(state=pb.CONTAINER_CREATED)))
    assert not lists.everything(pb.ContainerFilter(label_selector={"a": ""}))
