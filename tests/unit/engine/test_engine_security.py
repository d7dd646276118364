"""Capabilities of a container, by what is added and what is dropped."""

import pytest

from sampan.engine import security
from sampan.engine.model import Security
from sampan.linux.capabilities import NAMES

DEFAULT = set(security.DEFAULT_CAPABILITIES)


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        ([], [], DEFAULT),
        ([], ["NET_RAW"], DEFAULT - {"CAP_NET_RAW"}),
        (["net_admin"], [], DEFAULT | {"CAP_NET_ADMIN"}),
        # As containerd and CRI-O have it: what is dropped is dropped from what is added, save that ALL comes first.
        (["NET_RAW"], ["CAP_NET_RAW"], DEFAULT - {"CAP_NET_RAW"}),
        (["NET_ADMIN"], ["NET_ADMIN"], DEFAULT),
        (["CHOWN"], ["ALL"], {"CAP_CHOWN"}),
        (["CHOWN"], ["ALL", "CHOWN"], set()),
        (["ALL"], [], set(NAMES)),
        (["ALL"], ["SYS_ADMIN"], set(NAMES) - {"CAP_SYS_ADMIN"}),
        (["ALL"], ["ALL"], set(NAMES)),
    ],
)
def test_what_is_dropped_is_dropped_last(
    monkeypatch: pytest.MonkeyPatch, add: list[str], drop: list[str], expected: set[str]
) -> None:
    monkeypatch.setattr(security, "held_capabilities", lambda: frozenset(NAMES))
    sets = security.capabilities(Security(add_capabilities=tuple(add), drop_capabilities=tuple(drop)))
    assert set(sets["bounding"]) == expected
    assert sets["ambient"] == []


def test_what_is_dropped_is_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "held_capabilities", lambda: frozenset(NAMES))
    names = ("NET_ADMIN", "CHOWN")
    sets = security.capabilities(Security(add_ambient_capabilities=names, drop_capabilities=("NET_ADMIN",)))
    assert sets["ambient"] == ["CAP_CHOWN"]
    assert "CAP_NET_ADMIN" not in sets["bounding"]
