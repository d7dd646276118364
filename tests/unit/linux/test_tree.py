"""Trees that were made to be in the way: too deep, through links, under odd names."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from sampan.linux import tree

DEPTH = 1500


@pytest.fixture
def top(tmp_path: Path) -> Iterator[Path]:
    """A folder that goes, whatever is in it."""
    folder = tmp_path / "top"
    folder.mkdir()
    yield folder
    if folder.exists():
        tree.remove(str(folder))


def nest(top: Path, depth: int) -> None:
    """Directories in directories, with files here and there: deeper than a path can say."""
    fd = os.open(top, os.O_RDONLY)
    for level in range(depth):
        if level % 50 == 0:
            os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=fd))
        os.mkdir(f"d{level % 10}", dir_fd=fd)
        below = os.open(f"d{level % 10}", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def test_a_tree_deeper_than_any_path_is_counted_and_removed(top: Path) -> None:
    nest(top, DEPTH)
    with pytest.raises((RecursionError, OSError)):  # or this test would show nothing
        shutil.rmtree(top)
    found = list(tree.statuses(str(top)))
    assert sum(stat.S_ISDIR(status.st_mode) for status in found) == DEPTH + 1
    before = len(os.listdir("/proc/self/fd"))
    tree.remove(str(top))
    assert not top.exists()
    assert len(os.listdir("/proc/self/fd")) == before


def test_links_are_removed_and_not_followed(top: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("kept")
    (top / "link").symlink_to(outside)
    (top / "up").symlink_to("..")
    (top / "nowhere").symlink_to("gone")
    os.mkfifo(top / "pipe")
    with open(os.fsencode(top) + b"/\xff\n", "w"):
        pass
    assert len(list(tree.statuses(str(top)))) == 6
    tree.remove(f"{top}/")
    assert not top.exists()
    assert (outside / "file").read_text() == "kept"


def test_what_is_no_directory_is_an_error(top: Path) -> None:
    (top / "file").write_text("")
    (top / "link").symlink_to(".")
    for name in ("file", "link", "missing"):
        with pytest.raises(OSError, match=name):
            tree.remove(str(top / name))
    assert (top / "file").exists()
    with pytest.raises(FileNotFoundError):
        list(tree.statuses(str(top / "missing")))
