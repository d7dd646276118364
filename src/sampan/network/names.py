"""Container names that resolve on a network: kept in each container's hosts file, with no daemon and no server.

Who joins or leaves rewrites the files of those already there, one after the other under the state's lock, so that the
files agree with the record when the last one is done. A file is written in place, since containers have it mounted, and
only between two marker lines: what else stands in it is the container's own.
"""

import os
import sqlite3
from collections.abc import Iterable, Mapping

from sampan.errors import InvalidInput
from sampan.network.state import State

_BEGIN = "# names on this container's networks, kept by sampan"
_END = "# end of names"
#: A hosts file is the container's to write; one larger than this is left alone.
_MAX_FILE = 1 << 20


def publish(
    state: State,
    container_id: str,
    addresses: Mapping[str, Iterable[str]],
    names: Iterable[str],
    hosts: str,
    realm: str,
) -> None:
    """Let a container and those of its networks find each other by name.

    Args:
        state: The state.
        container_id: Who has joined.
        addresses: Its addresses on each network, by the network's name.
        names: What it is called; a network's name behind a dot is added to each.
        hosts: Path of its hosts file, which is there.
        realm: Only containers of one realm see each other.

    Raises:
        InvalidInput: A name can't stand in a hosts file.
    """
    called = list(dict.fromkeys(name for name in names if name))
    for name in called:
        if not name.isascii() or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise InvalidInput(f"{name!r} is no name that can be resolved", field="name")
    with state.transaction() as database:
        for network, own in addresses.items():
            row = (container_id, network, realm, hosts, " ".join(called), " ".join(own), state.boot)
            database.execute("INSERT OR REPLACE INTO names VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        for network in addresses:
            _write_all(database, network, realm)


def withdraw(state: State, container_id: str) -> None:
    """Take a container's names from its networks; none is no error."""
    query = "SELECT network, realm FROM names WHERE container = ?"
    if state.database.execute(query, (container_id,)).fetchone() is None:
        return
    with state.transaction() as database:
        places = database.execute(query, (container_id,)).fetchall()
        database.execute("DELETE FROM names WHERE container = ?", (container_id,))
        for network, realm in places:
            _write_all(database, network, realm)


def refresh(state: State) -> None:
    """Write every hosts file anew: somebody may have died over it."""
    with state.transaction() as database:
        for network, realm in database.execute("SELECT DISTINCT network, realm FROM names").fetchall():
            _write_all(database, network, realm)


def _write_all(database: sqlite3.Connection, network: str, realm: str) -> None:
    query = "SELECT DISTINCT hosts, container FROM names WHERE network = ? AND realm = ?"
    for hosts, container in database.execute(query, (network, realm)).fetchall():
        _write(hosts, _lines(database, container, realm))


def _lines(database: sqlite3.Connection, container: str, realm: str) -> list[str]:
    """What a container is to know: each container of each of its networks, itself too."""
    rows = database.execute(
        "SELECT network, names, addresses FROM names WHERE realm = ? AND network IN"
        " (SELECT network FROM names WHERE container = ?) ORDER BY network, names",
        (realm, container),
    ).fetchall()
    lines = []
    for network, names, addresses in rows:
        called = " ".join(f"{name} {name}.{network}" for name in names.split())
        lines += [f"{address}\t{called}" for address in addresses.split()]
    return lines


def _write(path: str, lines: list[str]) -> None:
    """Put lines between the markers of a hosts file; a file that is gone or not to be read is its container's loss."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        data = os.read(fd, _MAX_FILE + 1)
        if len(data) > _MAX_FILE:
            return
        wanted = merged(data.decode("utf-8", "surrogateescape"), lines).encode("utf-8", "surrogateescape")
        if wanted != data:
            # One write and then the cut, so that a reader meets no empty file.
            os.pwrite(fd, wanted, 0)
            os.ftruncate(fd, len(wanted))
    except OSError:
        return
    finally:
        os.close(fd)


def merged(text: str, lines: list[str]) -> str:
    """A hosts file's text with ``lines`` between the markers, which are put at its end when it has none."""
    kept: list[str] = []
    inside = False
    for line in text.splitlines():
        if line == _BEGIN:
            inside = True
        elif line == _END:
            inside = False
        elif not inside:
            kept.append(line)
    block = [_BEGIN, *lines, _END] if lines else []
    return "".join(f"{line}\n" for line in (*kept, *block))
