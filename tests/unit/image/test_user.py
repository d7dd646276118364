"""Users and groups of an image."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sampan.errors import InvalidInput
from sampan.image.user import User, lookup_user

PASSWD = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\nwrap:x:4294967296:0::/:/bin/sh\nshort:x\n"
GROUP = "root:x:0:\nwww:x:34:\nlog:x:50:web,other\naudio:x:60:web\n"


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text(GROUP)
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(
    ("text", "user"),
    [
        ("root", User(0, 0, (), "/root", "root")),
        ("web", User(33, 34, (50, 60), "/srv", "web")),
        ("33", User(33, 34, (50, 60), "/srv", "web")),
        ("web:log", User(33, 50, (), "/srv", "web")),
        ("1000", User(1000, 0)),
        ("1000:7", User(1000, 7)),
    ],
)
def test_names_and_numbers(root: int, text: str, user: User) -> None:
    assert lookup_user(root, text) == user


@pytest.mark.parametrize("text", ["", ":0", "nobody", "web:nogroup", "2147483648", "4294967296", "wrap", "short"])
def test_what_has_no_id_is_refused_and_never_becomes_root(root: int, text: str) -> None:
    with pytest.raises(InvalidInput, match="user"):
        lookup_user(root, text)


def test_a_link_out_of_the_root_stays_inside(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").symlink_to("/../../../../etc/passwd")
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    try:
        with pytest.raises(InvalidInput):
            lookup_user(fd, "daemon")
    finally:
        os.close(fd)
