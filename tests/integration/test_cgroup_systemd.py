"""The systemd driver, against a bus of the test's own on which the test stands for systemd.

What systemd itself makes of the calls is tested in the emulated machine, which boots with it.
"""

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jeepney import DBusAddress, MessageType, message_bus, new_error, new_method_return, new_signal
from jeepney.io.blocking import open_dbus_connection

from runtime_failures import children
from sampan.cgroup import mode, open_group
from sampan.cgroup.hierarchy import layout, read_file
from sampan.errors import SampanError, Unavailable

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("dbus-daemon") is None, reason="dbus-daemon is not installed"),
    pytest.mark.skipif(os.path.isdir("/run/systemd/system"), reason="the machine has a systemd of its own"),
]

CONFIG = """<busconfig><type>system</type><listen>unix:path={path}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow own="*"/><allow send_destination="*"/><allow eavesdrop="true"/></policy></busconfig>"""


class Systemd(threading.Thread):
    """Makes and removes groups in systemd's hierarchy as asked, and remembers what it was told."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.address = address
        self.properties: dict[str, Any] = {}
        self.calls: list[str] = []
        self.refuse = ""
        self.ready = threading.Event()

    def directory(self, unit: str) -> str:
        current = layout()
        point = current.unified if mode() == "v2" else current.controllers["name=systemd"]
        return f"{point}/sampan.slice/{unit}"

    def run(self) -> None:
        with open_dbus_connection(bus=self.address) as connection:
            connection.send_and_get_reply(message_bus.RequestName("org.freedesktop.systemd1"))
            self.ready.set()
            while True:
                try:
                    message = connection.receive()
                except ConnectionResetError:
                    return  # the bus has gone with the test
                if message.header.message_type != MessageType.method_call:
                    continue
                method = message.header.fields[3]
                self.calls.append(method)
                if method == "Exit":
                    connection.send(new_method_return(message))
                    return
                if method == self.refuse:
                    connection.send(new_error(message, "org.x.Refused", "s", ("no, thank you",)))
                    continue
                job = self.serve(method, message.body)
                connection.send(new_method_return(message, "o" if job else None, (job,) if job else ()))
                if job:
                    manager = DBusAddress("/org/freedesktop/systemd1", interface="org.freedesktop.systemd1.Manager")
                    connection.send(new_signal(manager, "JobRemoved", "uoss", (1, job, message.body[0], "done")))

    def serve(self, method: str, body: tuple[Any, ...]) -> str:
        if method == "StartTransientUnit":
            self.properties |= {key: value for key, (_, value) in body[2]}
            os.makedirs(self.directory(body[0]))
            Path(self.directory(body[0]), "cgroup.procs").write_text(str(self.properties["PIDs"][0]))
            return "/org/freedesktop/systemd1/job/1"
        if method == "SetUnitProperties":
            self.properties |= {key: value for key, (_, value) in body[2]}
        if method == "StopUnit":
            return "/org/freedesktop/systemd1/job/2"
        return ""


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    (tmp_path / "bus.conf").write_text(CONFIG.format(path=tmp_path / "bus"))
    bus = subprocess.Popen(
        ["dbus-daemon", f"--config-file={tmp_path / 'bus.conf'}", "--nofork", "--print-address"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert bus.stdout is not None
    address = bus.stdout.readline().strip()
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
    fake = Systemd(address)
    fake.start()
    assert fake.ready.wait(10)
    yield fake
    bus.terminate()
    bus.wait(10)
    bus.stdout.close()


def test_a_scopes_life(systemd: Systemd) -> None:
    group = open_group(f"sampan.slice:test:{os.getpid()}", systemd=True)
    unit = f"test-{os.getpid()}.scope"
    group.create()
    (holder,) = group.pids()
    assert systemd.properties["Slice"] == "sampan.slice"
    assert systemd.properties["Delegate"] is True
    assert systemd.properties["PIDs"] == [holder]
    group.create()  # is there already: an exec does this
    group.set({"memory": {"limit": 64 << 20}, "cpu": {"shares": 512, "quota": 5000}, "pids": {"limit": 9}})
    assert systemd.properties["TasksMax"] == 9
    assert systemd.properties["CPUQuotaPerSecUSec"] == 50_000
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        group.joiner().join()
        os.write(tell, b"!")
        signal.pause()
        os._exit(0)
    os.close(tell)
    assert os.read(ready, 1) == b"!"
    os.close(ready)
    group.close()  # as the runtime does when the container is made: the placeholder ends, and is collected
    assert holder not in children()
    again = open_group(f"sampan.slice:test:{os.getpid()}", systemd=True)
    assert again.pids() == [pid]
    if mode() != "v2":
        assert f"/sampan.slice/{unit}" in read_file(f"/proc/{pid}/cgroup")
    again.kill()
    os.waitpid(pid, 0)
    again.remove()
    assert not again.exists()
    assert systemd.calls[-2:] == ["StopUnit", "ResetFailedUnit"]
    os.rmdir(os.path.dirname(systemd.directory(unit)))


def test_a_refusal_leaves_no_placeholder(systemd: Systemd) -> None:
    systemd.refuse = "StartTransientUnit"
    before = children()
    group = open_group("sampan.slice:test:refused", systemd=True)
    with pytest.raises(SampanError, match="systemd refused StartTransientUnit: no, thank you"):
        group.create()
    assert children() == before
    assert not group.exists()


def test_a_machine_without_systemd_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nowhere/bus")
    before = children()
    with pytest.raises(Unavailable, match="systemd cannot be reached"):
        open_group(":test:alone", systemd=True).create()
    assert children() == before
