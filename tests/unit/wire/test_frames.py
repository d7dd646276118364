import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan import errors
from sampan.wire import frames

bodies = st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.booleans()), max_size=5)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2**32 - 1), bodies, st.integers(0, 4)), max_size=5),
    st.data(),
)
def test_frames_survive_any_cut(messages: list[tuple[int, int, dict[str, object], int]], data: st.DataObject) -> None:
    wire = b""
    arrivals: list[tuple[int, list[int]]] = []  # offset of the byte that descriptors come with
    number = 100
    for kind, request, body, count in messages:
        arrivals.append((len(wire), list(range(number, number + count))))
        number += count
        wire += frames.encode(kind, request, body, count)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=6)))
    decoder = frames.Decoder()
    got: list[frames.Frame] = []
    start = 0
    for end in [*cuts, len(wire)]:
        descriptors = [fd for at, fds in arrivals if start <= at < end for fd in fds]
        decoder.feed(wire[start:end], descriptors)
        while (frame := decoder.next()) is not None:
            got.append(frame)
        start = end
    assert [(f.kind, f.request, f.body) for f in got] == [(k, r, b) for k, r, b, _ in messages]
    assert [list(f.descriptors) for f in got] == [fds for _, fds in arrivals]
    assert decoder.idle
    assert decoder.steal_descriptors() == []


@given(st.binary(max_size=64))
def test_noise_is_refused_or_incomplete(noise: bytes) -> None:
    decoder = frames.Decoder()
    decoder.feed(noise)
    try:
        while decoder.next() is not None:
            pass
    except frames.FrameError:
        pass


def test_a_frame_over_the_limits_is_refused_from_its_header() -> None:
    decoder = frames.Decoder()
    decoder.feed((frames.MAX_BODY + 1).to_bytes(4, "little") + bytes(8))
    with pytest.raises(frames.FrameError, match="over the limits"):
        decoder.next()


def test_promised_descriptors_must_have_come() -> None:
    decoder = frames.Decoder()
    decoder.feed(frames.encode(frames.REQUEST, 1, {}, 2), [7])
    with pytest.raises(frames.FrameError, match="promises 2"):
        decoder.next()
    assert decoder.steal_descriptors() == [7]


def test_a_body_over_the_limit_is_not_encoded() -> None:
    with pytest.raises(errors.Exhausted):
        frames.encode(frames.REQUEST, 1, {"text": "x" * frames.MAX_BODY})


@pytest.mark.parametrize(
    "error",
    [
        errors.NotFound("container a: no such container"),
        errors.InvalidInput("must be positive", field="width"),
        errors.WrongState("container a is paused", hint="resume it"),
        errors.TimedOut("5 s passed"),
    ],
)
def test_an_error_comes_back_as_it_went(error: errors.SampanError) -> None:
    restored = frames.restore_error(frames.describe_error(error))
    assert type(restored) is type(error)
    assert str(restored) == str(error)
    assert getattr(restored, "field", "") == getattr(error, "field", "")


@pytest.mark.parametrize("kind", [errors.StageFailed, errors.ProgramFailed])
def test_a_failed_stage_comes_back_as_one(kind: type[errors.StageFailed]) -> None:
    error = kind('mount "proc"', OSError(1, "Operation not permitted", "/proc"))
    restored = frames.restore_error(frames.describe_error(error))
    assert isinstance(restored, errors.StageFailed)
    assert isinstance(restored, errors.ProgramFailed) == (kind is errors.ProgramFailed)
    assert str(restored) == 'mount "proc" at /proc: EPERM: Operation not permitted'
    assert frames.describe_error(restored)["message"] == restored.message
    again = frames.restore_error(frames.describe_error(restored))
    assert type(again) is type(restored)


@pytest.mark.parametrize("name", ["os", "_errno", "Exception", "", "annotations"])
def test_only_domain_errors_are_made(name: str) -> None:
    restored = frames.restore_error({"error": name, "message": "m"})
    assert type(restored) is errors.SampanError
