"""Looking up users in a root file system that may be hostile."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.errors import Exhausted, InvalidInput, SampanError
from sampan.image.user import User, lookup_user

PASSWD = (
    "root:x:0:0:root:/root:/bin/sh\n# c\nweb:x:101:102::/srv:/x\n1000:x:7:8:::\nbad:x:4294967296:0::/:\nshort:x:5\n\n"
)
GROUP = "root:x:0:\nadm:x:4:web,other\nwww:x:33:web\nbig:x:4294967296:web\n"


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text(GROUP)
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(
    ("text", "user"),
    [
        ("", User(0, 0, (), "/root", "root")),
        ("root", User(0, 0, (), "/root", "root")),
        ("web", User(101, 102, (4, 33), "/srv", "web")),
        ("101", User(101, 102, (4, 33), "/srv", "web")),
        ("web:adm", User(101, 4, (), "/srv", "web")),
        ("web:77", User(101, 77, (), "/srv", "web")),
        ("web:", User(101, 102, (4, 33), "/srv", "web")),
        (":adm", User(0, 4, (), "/root", "root")),
        # A name of digits is nobody's: what a request or a policy takes for 1000 would be another user.
        ("1000", User(1000, 0, (), "/", "")),
        ("1000:3000", User(1000, 3000, (), "/", "")),
        ("5555", User(5555, 0, (), "/", "")),
        ("5555:6666", User(5555, 6666, (), "/", "")),
        ("4294967294", User(4294967294, 0, (), "/", "")),
    ],
)
def test_forms(root: int, text: str, user: User) -> None:
    assert lookup_user(root, text) == user


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("nobody", "user"),
        ("web:nogroup", "group"),
        ("4294967295", "user"),
        ("4294967296", "user"),
        ("18446744073709551616", "user"),
        ("-1", "user"),
        ("+1", "user"),
        ("1:4294967296", "group"),
        ("bad", "user"),
        ("short", "user"),
        ("a:b:c", "user"),
        (":", "user"),
        ("٣", "user"),
    ],
)
def test_wrong_parts_are_named(root: int, text: str, part: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        lookup_user(root, text)
    assert caught.value.field == part


def test_without_files_numbers_still_serve(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert lookup_user(fd, "12") == User(12)
        assert lookup_user(fd, "") == User()
    finally:
        os.close(fd)


def test_links_out_of_the_root_stay_in_it(root: int, tmp_path: Path) -> None:
    (tmp_path / "etc/passwd").unlink()
    (tmp_path / "etc/passwd").symlink_to("/../../../../etc/passwd.other")
    (tmp_path / "etc/passwd.other").write_text("inner:x:9:9::/:\n")
    assert lookup_user(root, "inner").uid == 9
    (tmp_path / "etc/passwd").unlink()
    (tmp_path / "etc/passwd").symlink_to("passwd")
    with pytest.raises(InvalidInput, match="etc/passwd"):
        lookup_user(root, "0")


def test_odd_files_are_refused_at_once(root: int, tmp_path: Path) -> None:
    (tmp_path / "etc/passwd").unlink()
    os.mkfifo(tmp_path / "etc/passwd")
    with pytest.raises(InvalidInput, match="not a regular file"):
        lookup_user(root, "web")
    (tmp_path / "etc/passwd").unlink()
    with (tmp_path / "etc/passwd").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(Exhausted):
        lookup_user(root, "web")


@given(st.text(max_size=20))
def test_any_text(text: str) -> None:
    fd = os.open("/", os.O_RDONLY)
    try:
        assert 0 <= lookup_user(fd, text).uid < 0xFFFFFFFF
    except SampanError:
        pass
    finally:
        os.close(fd)
