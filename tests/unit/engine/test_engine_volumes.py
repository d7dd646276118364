"""Volumes that images declare: where they are, and that what a container left in them goes with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sampan.engine import volumes
from sampan.errors import InvalidInput


def test_volumes_begin_at_the_root() -> None:
    paths = ["data", "/a/../b", "../../c/", "//d/./e", "/", ".", "", "/data", "/taken/"]
    assert volumes.declared(paths, ["//taken"]) == ["/data", "/b", "/c", "/d/e"]
    with pytest.raises(InvalidInput, match="NUL"):
        volumes.declared(["/a\0b"], [])


def test_what_a_container_nested_deeper_than_a_stack_goes(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    folder = Path(volumes.directory("", "c1")).relative_to("/")
    for name in (*folder.parts, *["deep"] * 1200):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    volumes.remove(str(tmp_path), "c1")
    assert not (tmp_path / folder).exists()
    volumes.remove(str(tmp_path), "c1")
