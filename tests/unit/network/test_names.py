"""Names in hosts files: what is written between the markers, and who finds whom."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.errors import InvalidInput
from sampan.network import names
from sampan.network.state import State


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(str(tmp_path / "state"))


def join(state: State, folder: Path, container: str, *networks: str, realm: str = "default") -> Path:
    hosts = folder / f"{container}.hosts"
    hosts.write_text("127.0.0.1\tlocalhost\n")
    addresses = {network: (f"10.0.{len(network)}.{ord(container[0])}",) for network in networks}
    names.publish(state, container, addresses, (container, ""), str(hosts), realm)
    return hosts


def known(hosts: Path) -> dict[str, str]:
    """Which address a name has."""
    rows = [line.split() for line in hosts.read_text().splitlines() if not line.startswith("#")]
    return {name: row[0] for row in rows for name in row[1:]}


def test_those_of_one_network_find_each_other(state: State, tmp_path: Path) -> None:
    a, b = join(state, tmp_path, "a", "net"), join(state, tmp_path, "b", "net", "other")
    c, d = join(state, tmp_path, "c", "other"), join(state, tmp_path, "d", "net", realm="elsewhere")
    assert known(a) == {"localhost": "127.0.0.1", "a": "10.0.3.97", "a.net": "10.0.3.97", "b": "10.0.3.98"} | {
        "b.net": "10.0.3.98"
    }
    assert {"a", "a.net", "b.net", "b.other", "c", "c.other"} <= known(b).keys()
    assert "a" not in known(c)
    assert known(c)["b"] == "10.0.5.98"
    assert known(d).keys() == {"localhost", "d", "d.net"}


def test_who_leaves_is_forgotten(state: State, tmp_path: Path) -> None:
    a, b = join(state, tmp_path, "a", "net"), join(state, tmp_path, "b", "net")
    inode = a.stat().st_ino
    a.write_text("# mine\n" + a.read_text() + "192.0.2.1\tmy-own\n")
    names.withdraw(state, "b")
    names.withdraw(state, "b")
    assert known(a).keys() == {"localhost", "a", "a.net", "my-own"}
    assert a.read_text().startswith("# mine\n")
    assert a.stat().st_ino == inode  # a container has this very file mounted
    assert "a" in known(b)  # it has left; its file is nobody's business
    names.withdraw(state, "a")
    assert state.database.execute("SELECT count(*) FROM names").fetchone()[0] == 0


def test_a_file_that_is_gone_or_too_large_harms_nobody(state: State, tmp_path: Path) -> None:
    a, b = join(state, tmp_path, "a", "net"), join(state, tmp_path, "b", "net")
    a.unlink()
    b.write_text("#" * (2 << 20))
    c = join(state, tmp_path, "c", "net")
    assert not a.exists()
    assert b.stat().st_size == 2 << 20
    assert {"a", "b", "c"} <= known(c).keys()
    b.unlink()
    b.symlink_to(c)
    before = c.read_text()
    names.withdraw(state, "a")
    assert c.read_text() != before
    assert b.is_symlink()


def test_refresh_writes_what_a_crash_left_out(state: State, tmp_path: Path) -> None:
    a = join(state, tmp_path, "a", "net")
    a.write_text("127.0.0.1\tlocalhost\n")
    names.refresh(state)
    assert known(a)["a"] == "10.0.3.97"


def test_a_name_that_is_none(state: State, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no name that can be resolved"):
        names.publish(state, "a", {"net": ("10.0.0.1",)}, ("a\n6.6.6.6 bank",), str(tmp_path / "h"), "default")


def test_names_of_another_boot_are_void(tmp_path: Path) -> None:
    state = State(str(tmp_path / "state"))
    join(state, tmp_path, "a", "net")
    state.database.execute("UPDATE names SET boot = 'an earlier one'")
    state.close()
    state = State(str(tmp_path / "state"))
    b = join(state, tmp_path, "b", "net")
    assert "a" not in known(b)


@given(st.lists(st.text(alphabet="ab# \t.", max_size=8)), st.lists(st.text(alphabet="xy.1", min_size=1, max_size=6)))
def test_what_a_container_wrote_is_kept(own: list[str], lines: list[str]) -> None:
    text = "".join(f"{line}\n" for line in own)
    once = names.merged(text, lines)
    assert once.startswith(text)
    assert names.merged(once, lines) == once
    assert names.merged(once, []) == text
