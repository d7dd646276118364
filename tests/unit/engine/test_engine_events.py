"""The sequence of events, and the places of those who follow it."""

from pathlib import Path

import pytest

from sampan.engine import events as module
from sampan.engine.events import Events
from sampan.engine.model import Metadata, PodRecord, PodSpec
from sampan.storage.database import Database
from sampan.storage.records import Events as Table
from sampan.storage.records import Records


class World:
    """Events of two namespaces over one database, opened anew as after a crash."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def events(self, namespace: str = "k8s.io") -> Events:
        database = Database(self._path)
        return Events(Table(database), namespace, Records(database, namespace, "followers"))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "meta.db")


def taken(follower: module.Follower) -> list[int]:
    """What is there to be had, each handed over."""
    found = []
    while event := follower.get(0):
        found.append(event.sequence)
        follower.handed()
    return found


def test_the_first_follower_begins_now(world: World) -> None:
    events = world.events()
    events.append("created", container_id="a")
    follower = events.follow()
    events.append("started", container_id="a")
    assert taken(follower) == [2]


def test_what_was_just_handed_over_is_told_again(world: World) -> None:
    events = world.events()
    follower = events.follow()
    events.append("created", container_id="a")
    assert taken(follower) == [1]
    follower.leave()
    events.append("started", container_id="a")
    assert taken(events.follow()) == [1, 2]


def test_what_was_taken_a_while_ago_is_not(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TAKEN", 0)
    events = world.events()
    follower = events.follow()
    events.append("created", container_id="a")
    assert taken(follower) == [1]
    follower.leave()
    events.append("started", container_id="a")
    assert taken(events.follow()) == [2]


def test_who_was_cut_off_by_a_crash_loses_nothing(world: World) -> None:
    before = world.events()
    follower = before.follow()
    before.append("created", container_id="a")
    assert taken(follower) == [1]
    after = world.events()
    after.append("stopped", container_id="a")
    assert taken(after.follow()) == [1, 2]


def test_one_that_stays_does_not_take_the_place_of_one_that_left(world: World) -> None:
    events = world.events()
    first, second = events.follow(), events.follow()
    first.leave()
    events.append("created", container_id="a")
    assert taken(second) == [1]
    assert taken(events.follow()) == [1]


def test_a_place_is_kept_for_a_while_only(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    events = world.events()
    events.follow().leave()
    events.append("created", container_id="a")
    monkeypatch.setattr(module, "_RETURN", 0)
    assert taken(events.follow()) == []
    monkeypatch.undo()
    # It was forgotten, not passed over.
    assert taken(world.events().follow()) == []


def test_namespaces_do_not_hear_each_other(world: World) -> None:
    mine, other = world.events(), world.events("other")
    follower = mine.follow()
    other.append("created", container_id="b")
    mine.append("created", container_id="a")
    assert taken(follower) == [2]


def test_old_events_go(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 10)
    monkeypatch.setattr(module, "_TRIM_EVERY", 20)
    events = world.events()
    for _ in range(40):
        events.append("created", container_id="a")
    assert [event.sequence for event in events.since(0)] == list(range(31, 41))


def test_a_removed_pod_can_still_be_told_of(world: World) -> None:
    events = world.events()
    pod = PodRecord(id="p", spec=PodSpec(metadata=Metadata("web")), handler="sampan", created_at=1)
    events.append("deleted", container_id="a", pod_id="p")
    events.append("pod-deleted", pod_id="p", pod=pod)
    assert events.removed_pod("p", 0) == pod
    assert events.removed_pod("p", 2) is None
    assert events.removed_pod("q", 0) is None
