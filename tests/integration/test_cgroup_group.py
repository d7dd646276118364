"""A group's life on this machine's real cgroups, whichever version they are."""

import os
import select
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from group_children import end, spawn
from sampan.cgroup import Group, mode, open_group
from sampan.cgroup.hierarchy import layout, parse_proc_cgroup, read_file
from sampan.cgroup.v1 import GroupV1
from sampan.engine.readings import Readings
from sampan.errors import InvalidInput, SampanError, TimedOut

pytestmark = pytest.mark.root

ROOT = "/sampan-test"


@pytest.fixture
def group() -> Iterator[Group]:
    made = open_group(f"{ROOT}/{os.getpid()}/inner")
    made.create()
    yield made
    end(made)
    assert not made.exists()
    assert not any(os.path.exists(point + ROOT) for point in layout().controllers.values())


def v1_only() -> None:
    if mode() == "v2":
        pytest.skip("looks at files of cgroup v1")


def test_join_puts_the_process_into_every_hierarchy(group: Group) -> None:
    pid = spawn(group)
    found = parse_proc_cgroup(read_file(f"/proc/{pid}/cgroup"))
    for name, directory in group.paths().items():
        if name or mode() == "v2":
            assert directory.endswith(found[name]), name
    assert group.pids() == [pid]


def test_joining_another_process(group: Group) -> None:
    other = open_group(f"{group.path}/other")
    leaf = open_group(f"{group.path}/leaf")  # cgroup v2 has no processes beside child groups
    for made in (other, leaf):
        made.create()
    pid = spawn(leaf)
    other.join(pid)
    assert other.pids() == [pid]
    assert group.pids(all=False) == []
    assert group.pids() == [pid]


def test_limits_are_the_kernels(group: Group) -> None:
    v1_only()
    group.set(
        {
            "cpu": {"shares": 512, "period": 50000, "quota": 5000, "burst": 1000, "cpus": "0"},
            "memory": {"limit": 64 << 20, "reservation": 32 << 20, "swappiness": 10},
            "pids": {"limit": 20},
            "blockIO": {"throttleReadBpsDevice": []},
        }
    )
    paths = group.paths()
    assert read_file(f"{paths['cpu']}/cpu.cfs_quota_us") == "5000\n"
    assert read_file(f"{paths['cpu']}/cpu.cfs_period_us") == "50000\n"
    assert read_file(f"{paths['cpu']}/cpu.cfs_burst_us") == "1000\n"
    assert read_file(f"{paths['cpu']}/cpu.shares") == "512\n"
    assert read_file(f"{paths['cpuset']}/cpuset.cpus") == "0\n"
    assert read_file(f"{paths['memory']}/memory.limit_in_bytes") == f"{64 << 20}\n"
    assert read_file(f"{paths['memory']}/memory.swappiness") == "10\n"
    assert read_file(f"{paths['pids']}/pids.max") == "20\n"


def test_a_cpuset_has_its_parents_processors_whoever_made_the_parent(group: Group) -> None:
    v1_only()
    cpuset = group.paths()["cpuset"]
    assert read_file(f"{os.path.dirname(cpuset)}/cgroup.clone_children") == "1\n"  # ours: the kernel fills its children
    others = f"{ROOT}-others-{os.getpid()}"
    point = layout().controllers["cpuset"]
    os.mkdir(point + others)
    inner = open_group(f"{others}/inner")
    try:
        inner.create()  # neither has any before
        for directory in (cpuset, point + others, f"{point}{others}/inner"):
            assert read_file(f"{directory}/cpuset.cpus") == read_file(f"{point}/cpuset.cpus")
            assert read_file(f"{directory}/cpuset.mems").strip()
        assert read_file(f"{point}{others}/cgroup.clone_children") == "0\n"
    finally:
        inner.remove()
        os.rmdir(point + others)


def test_memory_and_swap_move_up_and_down(group: Group) -> None:
    v1_only()
    directory = group.paths()["memory"]
    for limit, swap in ((64, 128), (256, 512), (32, 32), (32, -1), (64, 64)):
        group.set({"memory": {"limit": limit << 20, "swap": swap << 20 if swap > 0 else -1}})
        assert read_file(f"{directory}/memory.limit_in_bytes") == f"{limit << 20}\n"
    group.set({"memory": {"limit": -1}})
    assert int(read_file(f"{directory}/memory.memsw.limit_in_bytes")) > 1 << 60


def test_a_limit_below_the_usage_is_refused_when_asked_to_check(group: Group) -> None:
    spawn(group)
    with pytest.raises(InvalidInput, match=r"linux\.resources\.memory\.limit: 4096 is less"):
        group.set({"memory": {"limit": 4096, "checkBeforeUpdate": True}})


def test_a_limit_that_cannot_be_held_names_its_field(group: Group) -> None:
    with pytest.raises(SampanError, match="rdma"):
        group.set({"rdma": {"mlx5_0": {"hcaHandles": 3}}})
    if mode() != "v2":  # there shares become a weight, and any has one
        with pytest.raises(InvalidInput, match=r"cpu\.shares: 1 is less"):
            group.set({"cpu": {"shares": 1}})


def test_devices_are_denied_but_for_the_list(group: Group) -> None:
    group.set_devices([{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "major": 1, "minor": 11}])
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        group.join()
        outcome = b""
        os.mknod(path := f"/tmp/sampan-mem-{os.getpid()}", 0o20600, os.makedev(1, 1))
        for name in ("/dev/null", "/dev/kmsg", path):
            try:
                os.close(os.open(name, os.O_RDONLY))
                outcome += b"y"
            except PermissionError:
                outcome += b"n"
        os.unlink(path)
        os.write(tell, outcome)
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(ready, 10) == b"yyn"


def test_privileged_devices_allow_everything(group: Group) -> None:
    v1_only()
    group.set_devices([{"allow": True, "access": "rwm"}])
    assert read_file(f"{group.paths()['devices']}/devices.list") == "a *:* rwm\n"


class Unfreezable(GroupV1):
    def freeze(self) -> None:
        raise TimedOut("one of them waits for a disk")


def test_one_process_that_cannot_be_frozen_saves_no_other(group: Group) -> None:
    v1_only()
    pids = [spawn(group), spawn(group)]
    Unfreezable(group.path).kill(signal.SIGTERM)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [signal.SIGTERM, signal.SIGTERM]


def test_a_frozen_process_dies_when_killed(group: Group) -> None:
    pid = spawn(group)
    group.freeze()
    assert group.frozen()
    group.kill()
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert not group.frozen()


def test_a_fork_bomb_is_killed_whole(group: Group) -> None:
    group.set({"pids": {"limit": 64}})
    pid = os.fork()
    if pid == 0:
        group.join()
        while True:
            try:
                os.fork()
            except OSError:
                pass
    while len(group.pids()) < 10:
        os.sched_yield()
    group.kill()
    os.waitpid(pid, 0)


def test_removal_takes_nested_groups_but_not_a_parent_in_use(group: Group) -> None:
    sibling = open_group(f"{os.path.dirname(group.path)}/sibling")
    sibling.create()
    nested = open_group(f"{sibling.path}/a/b/c")
    nested.create()
    sibling.remove()
    assert not nested.exists()
    assert group.exists()


def test_removal_waits_for_processes_that_are_dying(group: Group) -> None:
    pids = [spawn(group) for _ in range(3)]
    group.kill()
    group.remove()
    assert not group.exists()
    for pid in pids:
        os.waitpid(pid, 0)
    group.create()


def test_a_group_can_be_made_while_another_takes_their_common_parent_along() -> None:
    """mkdir(2) in a group that is being removed says ENODEV, in one that has been ENOENT."""
    parent = f"{ROOT}/{os.getpid()}"

    def make_and_remove(name: str) -> None:
        for _ in range(400):
            one = open_group(f"{parent}/shared/{name}")
            one.create()
            one.remove()

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(make_and_remove, str(number)) for number in range(4)]:
            done.result()
    assert not open_group(parent).exists()


def test_a_parent_that_was_there_stays() -> None:
    v1_only()
    parent = f"{layout().controllers['pids']}/sampan-test-foreign"
    os.mkdir(parent)
    try:
        made = open_group("/sampan-test-foreign/ours/one")
        made.create()
        made.remove()
        assert os.listdir(parent)
        assert not os.path.exists(f"{parent}/ours")
        # The other hierarchies had no such parent, so it was ours there.
        assert not os.path.exists(f"{layout().controllers['memory']}/sampan-test-foreign")
    finally:
        os.rmdir(parent)


def test_running_out_of_memory_is_told_and_counted(group: Group) -> None:
    group.set({"memory": {"limit": 16 << 20, "swap": 16 << 20}})
    watch = group.oom_watch()
    assert watch.kills() == 0
    pid = spawn(group, "eat")
    poll = select.poll()
    poll.register(watch.fd, watch.events)
    assert poll.poll(10_000)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert watch.drain() >= 1
    assert group.oom_kills() >= 1
    assert not poll.poll(0)
    watch.close()
    watch.close()


def test_statistics_have_runcs_shape(group: Group) -> None:
    spawn(group)
    group.set({"pids": {"limit": 33}, "memory": {"limit": 64 << 20}})
    stats = group.stats()
    assert stats["pids"] == {"current": 1, "limit": 33}
    assert stats["memory"]["usage"]["limit"] == 64 << 20
    assert stats["memory"]["usage"]["usage"] > 0
    assert stats["cpu"]["usage"]["total"] > 0
    assert set(stats) == {
        "cpu",
        "cpuset",
        "memory",
        "pids",
        "blkio",
        "hugetlb",
        "intel_rdt",
        "network_interfaces",
    }
    assert group.memory_working_set() <= group.memory_usage()


def test_a_meter_reads_until_the_group_is_gone(group: Group) -> None:
    meter = group.meter()
    pid = spawn(group)
    usage = meter.read()
    assert usage.processes == 1
    assert usage.cpu > 0
    assert usage.memory > 0
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    while meter.read().processes:
        time.sleep(0.001)
    group.remove()
    with pytest.raises(FileNotFoundError):
        meter.read()
    with pytest.raises(FileNotFoundError):
        group.meter()
    readings = Readings(systemd=False)
    for _ in range(2):  # files of the first are of no use for the second
        group.create()
        (reading,) = readings.take([group.path], fresh=True)[1]
        assert not isinstance(reading, OSError)
        assert reading.usage.processes == 0
        assert bool(reading.usage.pressure) == (mode() == "v2" and os.path.exists("/proc/pressure/cpu"))
        group.remove()
    assert isinstance(readings.take([group.path], fresh=True)[1][0], FileNotFoundError)


def test_a_group_that_is_gone_is_quiet() -> None:
    gone = open_group(f"{ROOT}-never")
    gone.remove()
    gone.kill()
    assert gone.pids() == []
    assert gone.oom_kills() == 0
    assert not gone.exists()


@pytest.mark.parametrize("path", ["", "/a/../../b", "a/../..", "/a\n"])
def test_paths_that_lead_elsewhere_are_refused(path: str) -> None:
    with pytest.raises(InvalidInput, match="cgroupsPath"):
        open_group(path)


@pytest.mark.parametrize("late", [False, True])
def test_processes_are_where_something_is_limited(late: bool) -> None:
    """Huge pages, where their controller is in the unified hierarchy of a hybrid machine alone."""
    unified = layout().unified
    if mode() != "hybrid" or "hugetlb" not in read_file(f"{unified}/cgroup.controllers").split():
        pytest.skip("the hugetlb controller is not in a unified hierarchy beside v1")
    path = f"/sampan-test-huge-{os.getpid()}/one"
    group = open_group(path)
    group.create()
    limits = {"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]}
    members: list[int] = []

    def join() -> str:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            (group if not members else open_group(path)).joiner().join()
            os.write(writer, b"!")
            signal.pause()
        members.append(pid)
        os.close(writer)
        assert os.read(reader, 1) == b"!"
        os.close(reader)
        return unified_group(pid)

    def unified_group(pid: int) -> str:
        return parse_proc_cgroup(read_file(f"/proc/{pid}/cgroup"))[""]

    try:
        if late:
            assert join() != path
        group.set(limits)
        if late:
            assert unified_group(members[0]) == path
        assert join() == path
        assert join() == path  # an exec's, whom nobody has told of limits
    finally:
        for pid in members:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        group.remove()


def test_what_was_switched_on_for_huge_pages_is_switched_off_again() -> None:
    unified = layout().unified
    if mode() != "hybrid" or "hugetlb" not in read_file(f"{unified}/cgroup.controllers").split():
        pytest.skip("the hugetlb controller is not in a unified hierarchy beside v1")
    if "hugetlb" in read_file(f"{unified}/cgroup.subtree_control").split():
        pytest.skip("somebody has the hugetlb controller on already")
    group = open_group(f"/sampan-test-huge-{os.getpid()}/one")
    group.create()
    try:
        group.set({"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]})
        assert "hugetlb" in read_file(f"{unified}/cgroup.subtree_control").split()
    finally:
        group.remove()
    assert "hugetlb" not in read_file(f"{unified}/cgroup.subtree_control").split()
