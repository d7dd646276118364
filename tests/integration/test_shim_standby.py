"""The fork that has made a pod's namespaces and stays for the pod's first container."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from shim_pods import Pod, ended, process

from sampan import errors
from sampan.runtime.handler import Created, Stdio
from sampan.shim import helper
from sampan.shim.zygote import Zygote

pytestmark = pytest.mark.root

SCRIPT = "read line; echo got $line; exit 7"
KINDS = ("network", "ipc", "uts")


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote.start() as started:
        yield started


@pytest.fixture(params=[False, True], ids=["own PIDs", "shared PIDs"])
def pod(request: pytest.FixtureRequest, tmp_path: Path, zygote: Zygote) -> Iterator[Pod]:
    made = Pod(tmp_path, zygote, "native", standby=60)
    options = {"hostname": "pod", "pause": request.param, "pause_cgroup": f"{made.cgroup}/pause"}
    made.client.sandbox(str(tmp_path / "ns"), KINDS, **(options if request.param else {"hostname": "pod"}))
    yield made
    made.close()
    assert not os.path.exists(f"{made.directory}/crash.txt")


def standbys(pod: Pod) -> list[int]:
    """The monitor's forks: neither its containers nor its pause process."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            comm, _, rest = Path(f"/proc/{name}/stat").read_text().partition("(")[2].rpartition(") ")
        except OSError:
            continue
        if comm == "sampan-monitor" and rest.split()[1] == str(pod.pid) and rest.split()[0] != "Z":
            found.append(int(name))
    return found


def open_files(pid: int) -> list[str]:
    """But for /dev/null and the programs that all share."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # it has just been closed
            found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return [target for target in found if target not in ("/dev/null", "/sampan-init", "/pause")]


def test_it_is_in_the_monitors_namespaces_and_holds_nothing_of_the_monitors(pod: Pod) -> None:
    (standby,) = standbys(pod)
    for kind in ("net", "ipc", "uts", "mnt", "pid"):
        assert os.readlink(f"/proc/{standby}/ns/{kind}") == os.readlink(f"/proc/{pod.pid}/ns/{kind}")
    deadline = time.monotonic() + 10
    while [target.partition(":")[0] for target in open_files(standby)] != ["socket"]:
        assert time.monotonic() < deadline, open_files(standby)
        time.sleep(0.01)


@pytest.mark.parametrize("terminal", [False, True])
def test_it_makes_the_first_container_and_ends(pod: Pod, terminal: bool) -> None:
    (standby,) = standbys(pod)
    os.kill(standby, signal.SIGSTOP)
    make = threading.Thread(target=pod.run, args=("one", SCRIPT), kwargs={"stdin": True, "terminal": terminal})
    make.start()
    make.join(0.5)
    assert make.is_alive()  # nobody else makes it
    os.kill(standby, signal.SIGCONT)
    make.join(20)
    assert ended(standby)
    assert standbys(pod) == []
    reading, writing = os.pipe()
    os.write(writing, b"this\n")
    with pod.client.attach("one", stdin=reading):
        assert pod.client.wait("one", timeout=20).exit_code == 7
    os.close(reading)
    os.close(writing)
    assert "got this" in [text.strip() for text in pod.texts("one")]
    pod.run("two", "exit 8")
    assert pod.client.wait("two", timeout=20).exit_code == 8


def test_a_container_is_made_all_the_same_when_it_has_ended(pod: Pod) -> None:
    (standby,) = standbys(pod)
    os.kill(standby, signal.SIGKILL)
    assert ended(standby)
    pod.run("one", "sleep 1000")
    assert pod.client.exec_wait("one", process("/bin/true")).exit_code == 0


def test_what_it_is_refused_is_told_and_leaves_nothing(pod: Pod) -> None:
    (standby,) = standbys(pod)
    with pytest.raises(errors.SampanError, match="cwd"):
        pod.create("one", "true", cwd="not/absolute")
    assert ended(standby)
    assert not os.path.exists(f"{pod.path}/runtime/one")
    assert pod.client.info()["containers"] == []
    pod.run("two", "exit 3")
    assert pod.client.wait("two", timeout=20).exit_code == 3


def test_the_end_of_the_pause_process_is_told_at_once(tmp_path: Path, zygote: Zygote) -> None:
    """Whose child it is meanwhile."""
    pod = Pod(tmp_path, zygote, "native", standby=60)
    options = {"pause": True, "pause_cgroup": f"{pod.cgroup}/pause"}
    pause = pod.client.sandbox(str(tmp_path / "ns"), KINDS, **options)["pause_pid"]
    (standby,) = standbys(pod)
    with pod.client.events() as events:
        os.kill(pause, signal.SIGKILL)
        assert next(iter(events))["kind"] == "pause-exit"
    assert ended(standby)
    assert pod.client.info()["sandbox"]["pause_pid"] == 0
    pod.close()


def test_it_does_not_stay_for_ever(tmp_path: Path, zygote: Zygote) -> None:
    pod = Pod(tmp_path, zygote, "native", standby=0.3)
    (tmp_path / "ns").mkdir()
    pod.client.sandbox(str(tmp_path / "ns"), [])
    assert all(ended(standby) for standby in standbys(pod))
    pod.run("one", "exit 3")
    assert pod.client.wait("one", timeout=20).exit_code == 3
    pod.close()


def test_one_that_cannot_leave_the_namespaces_does_not_stay() -> None:
    handler = helper.ForkingHandler(WhoAmI(), light=True)  # type: ignore[arg-type]

    def leave() -> None:
        raise OSError(22, "no")

    pid = handler.run_and_stay(lambda: ({"pid": os.getpid()}, []), leave)["pid"]
    os.waitpid(pid, 0)
    maker = handler.create("one", "/", Stdio()).pid
    assert maker not in (pid, os.getpid())
    os.waitpid(maker, 0)


class WhoAmI:
    """A handler whose containers are whoever was asked to make them."""

    def create(self, *unused: object) -> Created:
        return Created(os.getpid())


def test_whoever_asks_at_the_moment_of_its_end_gets_a_container() -> None:
    handler = helper.ForkingHandler(WhoAmI(), light=True, standby=0.005)  # type: ignore[arg-type]
    makers = set()
    for turn in range(200):
        standby = handler.run_and_stay(lambda: ({"pid": os.getpid()}, []), lambda: None)["pid"]
        time.sleep(turn % 40 / 2000)
        maker = handler.create("one", "/", Stdio()).pid
        makers.add("standby" if maker == standby else "another")
        for pid in {standby, maker}:
            os.waitpid(pid, 0)
    assert makers == {"standby", "another"}


def test_it_ends_with_its_monitor(tmp_path: Path, zygote: Zygote) -> None:
    pod = Pod(tmp_path, zygote, "native", standby=60)
    pod.client.sandbox(str(tmp_path / "ns"), KINDS)
    (standby,) = standbys(pod)
    pod.close()
    assert ended(standby)


def test_it_ends_with_a_monitor_that_is_killed(tmp_path: Path, zygote: Zygote) -> None:
    pod = Pod(tmp_path, zygote, "native", standby=60)
    (tmp_path / "ns").mkdir()
    pod.client.sandbox(str(tmp_path / "ns"), [])
    (standby,) = standbys(pod)
    os.kill(pod.pid, signal.SIGKILL)
    assert ended(standby)
    pod.close()
