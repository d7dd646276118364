"""Paths inside a root: nothing is opened or made outside, whatever symlinks say."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sampan.linux.resolve import make_dirs, make_file, open_in_root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def _where(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _fd(root: Path) -> int:
    return os.open(root, os.O_PATH | os.O_DIRECTORY)


def test_directories_are_made_below(root: Path) -> None:
    fd = _fd(root)
    assert _where(make_dirs(fd, "/a/b/../c")) == f"{root}/a/c"
    assert _where(make_dirs(fd, "/")) == str(root)
    assert _where(make_dirs(fd, "../../../x")) == f"{root}/x"
    os.close(fd)


def test_dangling_links_are_made_where_they_point(root: Path) -> None:
    fd = _fd(root)
    (root / "run").symlink_to("/deep/run")
    (root / "up").symlink_to("../../../../outside")
    assert _where(make_dirs(fd, "/run/lock")) == f"{root}/deep/run/lock"
    assert _where(make_dirs(fd, "/up")) == f"{root}/outside"
    assert _where(make_file(fd, "/run/file")) == f"{root}/deep/run/file"
    (root / "resolv").symlink_to("../etc/real")
    assert _where(make_file(fd, "resolv")) == f"{root}/etc/real"
    assert (root / "etc" / "real").is_file()
    os.close(fd)


def test_loops_end(root: Path) -> None:
    fd = _fd(root)
    (root / "a").symlink_to("b/x")
    (root / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        make_dirs(fd, "/a/deep")
    os.close(fd)


def test_a_file_in_the_way_is_an_error(root: Path) -> None:
    fd = _fd(root)
    (root / "file").touch()
    with pytest.raises(NotADirectoryError):
        make_dirs(fd, "/file/below")
    with pytest.raises(NotADirectoryError):
        make_dirs(fd, "/file")
    os.close(fd)


def test_magic_links_are_refused(root: Path) -> None:
    fd = os.open("/", os.O_PATH | os.O_DIRECTORY)
    with pytest.raises(OSError, match="symbolic links"):
        open_in_root(fd, f"/proc/self/fd/{fd}/etc")
    os.close(fd)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(
    links=st.dictionaries(
        st.sampled_from("abcd"),
        st.lists(st.sampled_from(["a", "b", "c", "d", "..", "", "."]), max_size=6).map("/".join),
        max_size=4,
    ),
    path=st.lists(st.sampled_from(["a", "b", "c", "d", "x", "..", "."]), min_size=1, max_size=6).map("/".join),
)
def test_nothing_is_made_outside(tmp_path_factory: pytest.TempPathFactory, links: dict[str, str], path: str) -> None:
    base = tmp_path_factory.mktemp("resolve")
    (base / "root").mkdir()
    for name, target in links.items():
        if target:
            (base / "root" / name).symlink_to(target)
    fd = os.open(base / "root", os.O_PATH | os.O_DIRECTORY)
    try:
        made = make_dirs(fd, path)
    except OSError:
        pass
    else:
        assert (_where(made) + "/").startswith(f"{base}/root/")
    finally:
        os.close(fd)
    assert os.listdir(base) == ["root"]
