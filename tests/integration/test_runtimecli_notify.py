"""A service's container says that it is ready: sd_notify(3) through the runtime."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from runtime_command import Runtime, private_runtime

pytestmark = pytest.mark.root

SAY = """
import os, socket, sys, time
channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
def say(text):
    channel.sendto(text.encode(), os.environ["NOTIFY_SOCKET"])
"""


class Manager:
    """A service manager's end: what it was told, in order."""

    def __init__(self, address: str) -> None:
        self.said: list[str] = []
        self.address = address
        self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._channel.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            text, descriptors, *_ = socket.recv_fds(self._channel, 4096, 8)
            if not text:
                return
            self.said.append(text.decode())
            time.sleep(0.1 if descriptors else 0)
            for fd in descriptors:
                os.close(fd)

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self._channel.getsockname())
        self._thread.join(10)
        self._channel.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(f"@{tmp_path}/manager")
    yield made
    made.close()


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    with private_runtime(tmp_path) as made:
        # The machine's own root, for a Python in it.
        made.config["root"] = {"path": "/", "readonly": True}
        made.config["mounts"].append({"destination": "/run", "type": "tmpfs", "source": "tmpfs"})
        made.config["process"]["user"] = {"uid": 1000, "gid": 1000}
        yield made


def program(runtime: Runtime, code: str) -> None:
    """Write what the container runs, in Python."""
    runtime.config["process"]["args"] = [os.path.realpath(sys.executable), "-I", "-S", "-c", SAY + code]
    (runtime.bundle / "config.json").write_text(json.dumps(runtime.config))


def service(runtime: Runtime, manager: Manager, *words: str) -> None:
    """What a manager starts; its output is not captured: the container would hold the pipe open."""
    environment = {**os.environ, "NOTIFY_SOCKET": manager.address}
    subprocess.run(runtime.command(*words), cwd=runtime.bundle, env=environment, stdin=-3, stdout=-3, check=True)


def told(pid: int) -> list[str]:
    return [f"READY=1\nMAINPID={pid}", "BARRIER=1"]


@pytest.mark.parametrize("steps", [("create", "start"), ("run --detach",)])
def test_the_start_ends_when_the_container_is_ready(runtime: Runtime, manager: Manager, steps: tuple[str, ...]) -> None:
    program(runtime, "time.sleep(0.5); say('STATUS=x'); say('MAINPID=1\\nREADY=1\\nFDSTORE=1'); time.sleep(1000)")
    for step in steps:
        assert manager.said == []
        service(runtime, manager, *step.split(), "c1")
    assert manager.said == told(runtime.state("c1")["pid"])


def test_a_container_that_ends_instead_holds_nobody_up(runtime: Runtime, manager: Manager) -> None:
    program(runtime, "time.sleep(0.2)")
    service(runtime, manager, "create", "c1")
    service(runtime, manager, "start", "c1")
    assert manager.said == []
    assert runtime.state("c1")["status"] == "stopped"
    again = runtime.run("start", "c1", env={**os.environ, "NOTIFY_SOCKET": manager.address}, code=1)
    assert "not created" in again.stderr


def test_in_the_foreground_whoever_says_more_is_read_and_not_passed_on(runtime: Runtime, manager: Manager) -> None:
    program(runtime, "[say('READY=1\\n' + 'x' * 3000) for _ in range(3000)]; sys.exit(7)")
    with subprocess.Popen(
        runtime.command("run", "c1"),
        cwd=runtime.bundle,
        env={**os.environ, "NOTIFY_SOCKET": manager.address},
        stdin=subprocess.DEVNULL,
    ) as running:
        assert running.wait(60) == 7
    assert manager.said == told(running.pid)


def test_the_last_word_of_a_container_is_passed_on(runtime: Runtime, manager: Manager) -> None:
    program(runtime, "say('READY=0'); say('READY=1')")
    for turn in range(10):
        service(runtime, manager, "run", f"c{turn}")
        assert len(manager.said) == 2 * (turn + 1)


def test_a_start_after_one_that_failed_is_heard(runtime: Runtime, manager: Manager) -> None:
    program(runtime, "say('READY=1'); time.sleep(1000)")
    service(runtime, manager, "create", "c1")
    runtime.run("pause", "c1")
    again = runtime.run("start", "c1", env={**os.environ, "NOTIFY_SOCKET": manager.address}, code=1)
    assert "is paused" in again.stderr
    runtime.run("resume", "c1")
    service(runtime, manager, "start", "c1")
    assert manager.said == told(runtime.state("c1")["pid"])


def test_an_empty_variable_is_none(runtime: Runtime) -> None:
    program(runtime, "print(os.environ.get('NOTIFY_SOCKET'), os.path.exists('/run/notify'))")
    assert runtime.run("run", "c1", env={**os.environ, "NOTIFY_SOCKET": ""}).stdout == "None False\n"


def test_whatever_the_umask_and_wherever_the_root(runtime: Runtime, manager: Manager) -> None:
    program(runtime, "say('READY=1'); time.sleep(1000)")
    command = [word.replace(str(runtime.root), "../root") for word in runtime.command("run", "--detach", "c1")]
    environment = {**os.environ, "NOTIFY_SOCKET": manager.address}
    subprocess.run(command, cwd=runtime.bundle, env=environment, stdin=-3, stdout=-3, check=True, umask=0o077)
    assert manager.said == told(runtime.state("c1")["pid"])


def test_a_manager_that_reads_nothing_holds_nobody_up(runtime: Runtime, tmp_path: Path) -> None:
    program(runtime, "say('READY=1'); time.sleep(1000)")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as us,
    ):
        deaf.bind(f"{tmp_path}/deaf")
        us.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                us.sendto(b"x", f"{tmp_path}/deaf")
        environment = {**os.environ, "NOTIFY_SOCKET": f"{tmp_path}/deaf"}
        command = runtime.command("--log", f"{tmp_path}/log", "run", "--detach", "c1")
        subprocess.run(command, cwd=runtime.bundle, env=environment, stdin=-3, stdout=-3, check=True, timeout=60)
    assert "ETIMEDOUT" in (tmp_path / "log").read_text()


def test_a_container_cannot_take_the_socket_away(runtime: Runtime, manager: Manager) -> None:
    runtime.config["process"]["user"] = {"uid": 0, "gid": 0}
    code = """
say("READY=1")
for name in os.listdir("/run/notify"):
    try:
        os.unlink(f"/run/notify/{name}")
    except OSError as error:
        print(name, error.strerror)
"""
    program(runtime, code)
    ended = runtime.run("run", "c1", env={**os.environ, "NOTIFY_SOCKET": manager.address})
    assert ended.stdout == "notify.sock Read-only file system\n"


def test_what_a_container_with_every_right_leaves_there_goes_with_it(runtime: Runtime, manager: Manager) -> None:
    capabilities = runtime.config["process"]["capabilities"]
    for names in capabilities.values():
        names.append("CAP_SYS_ADMIN")
    runtime.config["process"]["user"] = {"uid": 0, "gid": 0}
    mount = shutil.which("mount", path="/bin:/usr/bin")
    code = f"os.system('{mount} -o remount,bind,rw /run/notify'); "
    code += "os.chdir('/run/notify'); [(os.mkdir('a'), os.chdir('a')) for _ in range(3000)]; print(1)"
    program(runtime, code)
    ended = runtime.run("run", "c1", env={**os.environ, "NOTIFY_SOCKET": manager.address})
    assert ended.stdout == "1\n"


def test_a_socket_that_the_engine_gave_it_is_left_to_it(runtime: Runtime, manager: Manager) -> None:
    runtime.config["process"]["env"].append("NOTIFY_SOCKET=/of/the/engine")
    program(runtime, "print(os.environ['NOTIFY_SOCKET'], os.path.exists('/run/notify'))")
    ended = runtime.run("run", "c1", env={**os.environ, "NOTIFY_SOCKET": manager.address})
    assert ended.stdout == "/of/the/engine False\n"


def test_a_manager_that_is_gone_is_told_of_in_the_log(runtime: Runtime, tmp_path: Path) -> None:
    program(runtime, "say('READY=1'); time.sleep(1000)")
    gone = Manager(f"{tmp_path}/manager")
    gone.close()
    service(runtime, gone, "--log", f"{tmp_path}/log", "run", "--detach", "c1")
    assert f"{gone.address}: ECONNREFUSED" in (tmp_path / "log").read_text()
    assert runtime.state("c1")["status"] == "running"
