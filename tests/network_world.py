"""A machine of a test's own: a network namespace in which bridges, rules and sysctls stand, with pods and other hosts.

Nothing is pinned in the file system: namespaces live by descriptors, and are named by this process's /proc entries, so
that other programs find them and nothing is left when the test ends.
"""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sampan.linux.namespaces import CLONE_NEWNET, setns, unshare
from sampan.network import Networks, plugins
from sampan.network.netns import inside

_SECONDS = 3


class Place:
    """A network namespace: the machine's, a pod's, or another host's."""

    def __init__(self) -> None:
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        unshare(CLONE_NEWNET)
        self.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        setns(home, CLONE_NEWNET)
        os.close(home)
        self.path = f"/proc/{os.getpid()}/fd/{self.fd}"

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def run(self, command: str) -> str:
        """Run a command inside; its output."""
        with inside(self.fd):
            done = subprocess.run(command.split(), capture_output=True, text=True, check=False, timeout=20)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def ip(self, command: str) -> list[dict[str, Any]]:
        """``ip -json`` inside."""
        text = self.run(f"ip -json {command}")
        found: list[dict[str, Any]] = json.loads(text or "[]")
        return [entry for entry in found if entry]

    def addresses(self, link: str) -> set[str]:
        """Addresses of global scope on a link."""
        return {
            f"{a['local']}/{a['prefixlen']}"
            for entry in self.ip(f"addr show dev {link}")
            for a in entry["addr_info"]
            if a["scope"] == "global"
        }

    def routes(self) -> set[str]:
        """Routes, as ``destination via gateway``, kernel's own ones too."""
        entries = self.ip("-4 route show") + self.ip("-6 route show")
        return {
            f"{e['dst']} via {e['gateway']}" if "gateway" in e else e["dst"]
            for e in entries
            if not e["dst"].startswith("fe80") and e["dst"] != "multicast"
        }

    @contextmanager
    def serve(self, port: int, *, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> Iterator[None]:
        """Answer each connection or datagram with the address that it came from."""
        with inside(self.fd):
            listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
        if kind == socket.SOCK_STREAM:
            listener.listen()
        thread = threading.Thread(target=_answer, args=(listener, kind), daemon=True)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR) if kind == socket.SOCK_STREAM else _wake(self, port, family)
            thread.join(_SECONDS)
            listener.close()

    def ask(self, host: str, port: int, *, kind: int = socket.SOCK_STREAM, source_port: int = 0) -> str:
        """What a server at ``host`` sees us as; raises OSError when it can't be reached."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with inside(self.fd):
            client = socket.socket(family, kind)
        with client:
            client.settimeout(_SECONDS)
            if source_port:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                client.bind(("", source_port))
            client.connect((host, port))
            if kind == socket.SOCK_DGRAM:
                client.send(b"?")
            return client.recv(200).decode()

    def reaches(self, host: str, port: int, *, kind: int = socket.SOCK_STREAM) -> bool:
        try:
            return bool(self.ask(host, port, kind=kind))
        except OSError:
            return False


def _answer(listener: socket.socket, kind: int) -> None:
    while True:
        try:
            if kind == socket.SOCK_STREAM:
                connection, peer = listener.accept()
                with connection:
                    connection.sendall(peer[0].encode())
            else:
                data, peer = listener.recvfrom(100)
                if data == b"end":
                    return
                listener.sendto(peer[0].encode(), peer)
        except OSError:
            return


def _wake(place: Place, port: int, family: int) -> None:
    with inside(place.fd), socket.socket(family, socket.SOCK_DGRAM) as client:
        client.sendto(b"end", ("::1" if family == socket.AF_INET6 else "127.0.0.1", port))


class Machine(Place):
    """The namespace that the test's own thread is in, and what was made beside it."""

    def __init__(self) -> None:
        super().__init__()
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._places: list[Place] = []
        setns(self.fd, CLONE_NEWNET)
        self.run("ip link set lo up")

    def close(self) -> None:
        for place in self._places:
            place.close()
        setns(self._home, CLONE_NEWNET)
        os.close(self._home)
        super().close()

    def place(self) -> Place:
        """An empty namespace: a pod's, before it is attached."""
        place = Place()
        self._places.append(place)
        return place

    def neighbour(self, subnet: str = "192.168.77", v6: str = "fd77::") -> Place:
        """Another host, on a wire ``up0``; it knows no way to any pod."""
        other = self.place()
        self.run(f"ip link add up0 type veth peer name eth0 netns {other.path}")
        for place, link, last in ((self, "up0", "1"), (other, "eth0", "2")):
            place.run(f"ip addr add {subnet}.{last}/24 dev {link}")
            place.run(f"ip -6 addr add {v6}{last}/64 dev {link} nodad")
            place.run(f"ip link set {link} up")
            place.run("ip link set lo up")
        return other


@contextmanager
def machine() -> Iterator[Machine]:
    """A machine for the time of the body, for the calling thread."""
    made = Machine()
    try:
        yield made
    finally:
        made.close()


def kernel_has(*commands: str) -> bool:
    """Whether a kernel does what it is asked to on a machine of its own; after ``ip link``s, for example."""
    try:
        with machine() as scratch:
            for command in commands:
                scratch.run(command)
    except (AssertionError, PermissionError):
        return False
    return True


def executables(folder: Path) -> Path:
    """A directory of plugins, as an administrator would make one for another runtime."""
    target = folder / "bin"
    target.mkdir(exist_ok=True)
    source = Path(__file__).parents[1] / "src"
    program = target / "sampan-cni"
    program.write_text(
        f"#!{sys.executable}\nimport os, sys\nsys.path.insert(0, {str(source)!r})\n"
        f"os.environ['SAMPAN_CNI_STATE'] = {str(folder / 'executable-state')!r}\n"
        "from sampan.cli.cni import main\nsys.exit(main())\n"
    )
    program.chmod(0o755)
    for kind in plugins.TYPES:
        if not (target / kind).exists():
            (target / kind).symlink_to("sampan-cni")
    return target


def nft_elements(place: Place, nets: Networks, family: str = "inet") -> dict[str, int]:
    """Number of elements in each set and map that has any, of the table of a network state.

    Not of ``subnets4`` and ``subnets6``, which are no pod's, and stay with the table until it is tidied away.
    """
    document = json.loads(place.run(f"nft -j list table {family} {nets.state.table}"))
    found = {}
    for entry in document["nftables"]:
        for kind in ("set", "map"):
            if kind in entry and entry[kind].get("elem") and not entry[kind]["name"].startswith("subnets"):
                found[entry[kind]["name"]] = len(entry[kind]["elem"])
    return found
