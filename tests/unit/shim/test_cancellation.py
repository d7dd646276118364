"""Cancelling: what is to be done then is done once, at once, and not when it is no longer wanted."""

import socket
import threading

import pytest

from sampan.errors import Unavailable
from sampan.shim import sockets
from sampan.shim.cancellation import Cancellation
from sampan.shim.sockets import Channel, packet_pair
from sampan.wire import frames


def test_it_calls_what_is_under_way_and_nothing_that_is_over() -> None:
    cancellation, called = Cancellation(), list[str]()
    with cancellation.during(lambda: called.append("over")):
        pass
    with cancellation.during(lambda: called.append("outer")), cancellation.during(lambda: called.append("inner")):
        cancellation.cancel()
        cancellation.cancel()
    assert called == ["outer", "inner"]
    assert cancellation.cancelled


def test_what_begins_after_it_is_called_at_once() -> None:
    cancellation, called = Cancellation(), list[str]()
    cancellation.cancel()
    with cancellation.during(lambda: called.append("late")):
        assert called == ["late"]
    cancellation.cancel()
    assert called == ["late"]


def test_a_wait_for_a_frame_ends() -> None:
    ours, theirs = packet_pair()
    channel, cancellation = Channel(ours, "the monitor"), Cancellation()

    def cancel() -> None:
        assert theirs.recv(65536)  # the request: the other thread waits for its reply, or is about to
        cancellation.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    with cancellation.during(channel.hang_up), pytest.raises(Unavailable):
        channel.call({"op": "wait"})
    thread.join()
    assert not channel.settled
    channel.close()
    theirs.close()


def test_hanging_up_on_a_peer_that_has_gone_is_no_error() -> None:
    ours, theirs = packet_pair()
    channel = Channel(ours, "the monitor")
    theirs.shutdown(socket.SHUT_RDWR)
    theirs.close()
    channel.hang_up()
    channel.hang_up()
    channel.close()


def test_a_wait_may_be_longer_than_poll_can_wait_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_LONGEST", 0.02)
    ours, theirs = packet_pair()
    channel = Channel(ours, "the monitor")
    timer = threading.Timer(0.1, lambda: theirs.send(frames.encode(frames.REPLY, 1, {"done": True})))
    timer.start()
    assert channel.receive(1e9).body == {"done": True}
    with pytest.raises(TimeoutError):
        channel.receive(0.05)
    timer.join()
    channel.close()
    theirs.close()
