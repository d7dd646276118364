"""Tokens: once, not for long, not too many."""

import threading

import pytest

from sampan.errors import Exhausted
from sampan.streaming import tokens
from sampan.streaming.tokens import Tokens


def test_a_token_gives_its_request_once() -> None:
    waiting: Tokens[str] = Tokens()
    token = waiting.add("a")
    other = waiting.add("b")
    assert token != other
    assert (waiting.take(token), waiting.take(token), waiting.take("x"), waiting.take("")) == ("a", None, None, None)
    assert waiting.take(other) == "b"


def test_a_token_that_is_too_old_gives_nothing_and_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting: Tokens[int] = Tokens()
    monkeypatch.setattr(tokens, "LIFETIME", 0.0)
    old = [waiting.add(number) for number in range(tokens.MOST + 5)]
    assert waiting.take(old[-1]) is None


def test_too_many_are_refused_until_one_is_taken() -> None:
    waiting: Tokens[int] = Tokens()
    first = waiting.add(0)
    for number in range(tokens.MOST - 1):
        waiting.add(number)
    with pytest.raises(Exhausted):
        waiting.add(1)
    waiting.take(first)
    waiting.add(1)


def test_of_many_takers_one_wins() -> None:
    waiting: Tokens[int] = Tokens()
    token, won = waiting.add(7), []
    barrier = threading.Barrier(8)

    def take() -> None:
        barrier.wait()
        won.append(waiting.take(token))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, won)) == ["7", *["None"] * 7]
