"""The unified hierarchy: on a machine of cgroup v2, or beside v1 on a hybrid one, where few controllers are in it."""

import os
import select
import signal
from collections.abc import Iterator

import pytest

from group_children import end
from sampan.cgroup.device_program import install
from sampan.cgroup.devices import parse
from sampan.cgroup.hierarchy import layout, read_file, write_file
from sampan.cgroup.usage import Pressure
from sampan.cgroup.v2 import GroupV2
from sampan.errors import SampanError
from sampan.linux.process import clone3

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not layout().unified, reason="cgroup2 is not mounted"),
]


@pytest.fixture
def group() -> Iterator[GroupV2]:
    control = f"{layout().unified}/cgroup.subtree_control"
    before = read_file(control).split()
    made = GroupV2(f"/sampan-test-unified/{os.getpid()}/inner", layout().unified)
    made.create()
    yield made
    end(made)
    assert not os.path.exists(f"{layout().unified}/sampan-test-unified/{os.getpid()}")
    if layout().mode == "hybrid":
        # Other runtimes refuse hybrid machines with controllers in the unified hierarchy.
        for name in set(read_file(control).split()) - set(before):
            write_file(control, f"-{name}")


def spawn(group: GroupV2) -> int:
    fd = group.fd()
    pid, pidfd = clone3(0, cgroup_fd=fd)
    if pid == 0:
        signal.pause()
        os._exit(1)
    os.close(fd)
    os.close(pidfd)
    return pid


def test_a_process_is_born_into_the_group(group: GroupV2) -> None:
    pid = spawn(group)
    assert group.pids() == [pid]
    group.kill()
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert group.pids() == []


def test_joining(group: GroupV2) -> None:
    pid = os.fork()
    if pid == 0:
        group.join()
        signal.pause()
    other = GroupV2(f"{group.path}/other", layout().unified)
    os.mkdir(other.paths()[""])
    while not group.pids(all=False):
        os.sched_yield()
    other.join(pid)
    assert other.pids() == [pid]


def test_freezing_is_waited_for(group: GroupV2) -> None:
    pid = spawn(group)
    group.freeze()
    assert group.frozen()
    assert "frozen 1" in read_file(f"{group.paths()['']}/cgroup.events")
    group.kill()
    os.waitpid(pid, 0)
    group.thaw()
    assert not group.frozen()


def test_other_signals(group: GroupV2) -> None:
    pid = spawn(group)
    group.kill(signal.SIGUSR1)
    assert os.waitpid(pid, 0)[1] == signal.SIGUSR1


def test_removal_waits_for_the_dying_and_takes_what_is_below(group: GroupV2) -> None:
    below = GroupV2(f"{group.path}/a/b", layout().unified)
    below.create()
    pid = spawn(below)
    group.kill()
    group.remove()
    assert not group.exists()
    os.waitpid(pid, 0)
    group.create()


def test_a_limit_without_its_controller_names_the_field(group: GroupV2) -> None:
    if "rdma" in read_file(f"{group.paths()['']}/cgroup.controllers"):
        pytest.skip("the machine has the rdma controller")
    with pytest.raises(SampanError, match=r"linux\.resources\.rdma\[mlx\]: the group has no rdma\.max"):
        group.set({"rdma": {"mlx": {"hcaHandles": 1}}})


def test_huge_pages_are_limited(group: GroupV2) -> None:
    if "hugetlb" not in read_file(f"{group.paths()['']}/cgroup.controllers"):
        pytest.skip("the hugetlb controller is elsewhere")
    group.set({"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]})
    assert read_file(f"{group.paths()['']}/hugetlb.2MB.max") == f"{4 << 20}\n"
    assert group.stats()["hugetlb"]["2MB"] == {"usage": 0, "max": 4 << 20, "failcnt": 0}
    group.set({"unified": {"hugetlb.2MB.max": "max"}})
    assert read_file(f"{group.paths()['']}/hugetlb.2MB.max") == "max\n"


def test_statistics_tell_what_there_is(group: GroupV2) -> None:
    spawn(group)
    stats = group.stats()
    assert stats["cpu"]["usage"]["total"] >= 0
    assert stats["network_interfaces"] is None


def access(group: GroupV2, *wanted: tuple[str, int, int, int]) -> str:
    """For each node (kind, major, minor, open flags) whether a process of the group may open it: y or n."""
    readable, writable = os.pipe()
    fd = group.fd()
    pid, pidfd = clone3(0, cgroup_fd=fd)
    if pid == 0:
        outcome = ""
        for kind, major, minor, flags in wanted:
            path = f"/tmp/sampan-device-{os.getpid()}"
            try:
                os.mknod(path, 0o600 | (0o20000 if kind == "c" else 0o60000), os.makedev(major, minor))
            except PermissionError:
                outcome += "m"
                continue
            try:
                os.close(os.open(path, flags | os.O_NONBLOCK))
                outcome += "y"
            except PermissionError:
                outcome += "n"
            except OSError:
                outcome += "?"
            os.unlink(path)
        os.write(writable, outcome.encode())
        os._exit(0)
    os.close(fd)
    os.close(writable)
    select.select([pidfd], [], [])
    os.waitpid(pid, 0)
    os.close(pidfd)
    with open(readable) as file:
        return file.read()


def test_the_device_program_decides_each_access_by_itself(group: GroupV2) -> None:
    directory = group.paths()[""]
    mknod = {"allow": True, "access": "m", "type": "c"}
    null, zero = {"type": "c", "major": 1, "minor": 3}, {"type": "c", "major": 1, "minor": 5}

    def rules(*given: dict[str, object]) -> None:
        install(directory, parse([{"allow": False, "access": "rwm"}, mknod, *given], defaults=False))

    opens = (("c", 1, 3, os.O_RDONLY), ("c", 1, 3, os.O_WRONLY), ("c", 1, 3, os.O_RDWR), ("c", 1, 5, os.O_RDONLY))
    rules()
    assert access(group, *opens) == "nnnn"
    rules({"allow": True, "access": "r", **null})
    assert access(group, *opens) == "ynnn"
    rules({"allow": True, "access": "r", **null}, {"allow": True, "access": "w", **null})
    assert access(group, *opens) == "yyyn"
    rules({"allow": True, "access": "rwm", "type": "c", "major": 1}, {"allow": False, "access": "w", **null})
    assert access(group, *opens) == "ynny"
    rules({"allow": True}, {"allow": False, "access": "rwm", **zero})
    assert access(group, *opens) == "yyym"
    install(directory, parse([{"allow": True}], defaults=False))
    assert access(group, *opens, ("b", 7, 0, os.O_RDONLY)) in ("yyyyy", "yyyy?")


def test_the_default_devices(group: GroupV2) -> None:
    group.set_devices([{"allow": False, "access": "rwm"}])
    assert access(group, ("c", 1, 3, os.O_RDWR), ("c", 1, 11, os.O_RDONLY), ("b", 7, 0, os.O_RDONLY)) == "ynn"


@pytest.mark.skipif(not os.path.exists("/proc/pressure/cpu"), reason="this kernel keeps no pressure")
def test_a_group_that_is_gone_is_not_taken_for_one_without_pressure(group: GroupV2) -> None:
    pressure = Pressure(group.paths()[""])
    assert {kind: set(told) for kind, told in pressure.read().items()}["memory"] == {"some", "full"}
    group.remove()
    with pytest.raises(FileNotFoundError):
        pressure.read()
    group.create()
