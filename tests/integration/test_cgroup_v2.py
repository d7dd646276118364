"""What cgroup v2 has of its own, each limit felt by a process in the group. In the virtual machine, or on any of v2."""

import mmap
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from runtime_bundle import Box

from group_children import end
from sampan.cgroup import Group, mode, open_group
from sampan.cgroup.hierarchy import read_file, read_pairs
from sampan.errors import InvalidInput, SampanError, Unsupported

pytestmark = [pytest.mark.root, pytest.mark.skipif(mode() != "v2", reason="the machine has cgroup v1")]


@pytest.fixture
def group() -> Iterator[Group]:
    made = open_group(f"/sampan-test-v2/{os.getpid()}/inner")
    made.create()
    yield made
    end(made)
    assert not os.path.exists("/sys/fs/cgroup/sampan-test-v2")


def value(group: Group, name: str) -> str:
    return read_file(f"{group.paths()['']}/{name}").strip()


def inside(group: Group, work: Callable[[], object], *, wait: bool = True) -> int:
    """Do some work in a child in the group; its wait status, or, without ``wait``, its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            group.join()
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1] if wait else pid


def spin(seconds: float) -> None:
    """Use that much of a processor."""
    while sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) < seconds:
        pass


def test_limits_are_the_kernels(group: Group) -> None:
    group.set(
        {
            "cpu": {"shares": 512, "period": 50_000, "quota": 25_000, "burst": 10_000, "cpus": "0", "mems": "0"},
            "memory": {"limit": 64 << 20, "reservation": 32 << 20, "swap": 96 << 20},
            "pids": {"limit": 20},
        }
    )
    assert value(group, "cpu.weight") == "59"
    assert value(group, "cpu.max") == "25000 50000"
    assert value(group, "cpu.max.burst") == "10000"
    assert (value(group, "cpuset.cpus"), value(group, "cpuset.mems")) == ("0", "0")
    assert value(group, "memory.max") == str(64 << 20)
    assert value(group, "memory.low") == str(32 << 20)
    assert value(group, "memory.swap.max") == str(32 << 20)
    assert value(group, "pids.max") == "20"
    group.set({"cpu": {"period": 100_000}})
    assert value(group, "cpu.max") == "25000 100000"
    group.set({"cpu": {"quota": -1}, "memory": {"limit": -1}, "pids": {"limit": -1}})
    assert value(group, "cpu.max").split()[0] == "max"
    assert (value(group, "memory.max"), value(group, "memory.swap.max")) == ("max", "max")
    assert value(group, "pids.max") == "max"


def test_a_quota_throttles_and_is_counted(group: Group) -> None:
    group.set({"cpu": {"quota": 10_000, "period": 100_000}})
    began = time.monotonic()
    assert inside(group, lambda: spin(0.2)) == 0
    assert time.monotonic() - began > 0.2 * 3  # a tenth of a processor, and slack for what ran before joining
    throttling = group.stats()["cpu"]["throttling"]
    assert throttling["throttledPeriods"] > 0
    assert throttling["throttledTime"] > 0


def test_an_idle_group_has_the_least_weight(group: Group) -> None:
    group.set({"cpu": {"idle": 1, "shares": 1024}})
    assert value(group, "cpu.idle") == "1"
    assert value(group, "cpu.weight") == "0"
    group.set({"cpu": {"idle": 0}})
    group.set({"cpu": {"shares": 1024}})
    assert value(group, "cpu.weight") == "100"


def test_weights_divide_a_processor(group: Group) -> None:
    light, heavy = (open_group(f"{group.path}/{name}") for name in ("light", "heavy"))
    for made, shares in ((light, 64), (heavy, 4096)):
        made.create()
        made.set({"cpu": {"shares": shares, "cpus": "0"}})
        inside(made, lambda: spin(1000), wait=False)

    def used(made: Group) -> int:
        return int(made.stats()["cpu"]["usage"]["total"])

    deadline = time.monotonic() + 60
    while used(heavy) < 1_000_000_000:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert used(heavy) > 2 * used(light) > 0


def test_running_out_of_memory_kills_tells_and_counts(group: Group) -> None:
    group.set({"memory": {"limit": 16 << 20, "swap": 16 << 20}})
    watch = group.oom_watch()
    poll = select.poll()
    poll.register(watch.fd, watch.events)
    assert not poll.poll(0)

    def eat() -> None:
        kept = []
        while True:
            kept.append(b"x" * (1 << 20))

    assert os.WTERMSIG(inside(group, eat)) == signal.SIGKILL
    assert poll.poll(10_000)
    assert watch.drain() == group.oom_kills() == 1
    events = read_pairs(f"{group.paths()['']}/memory.events")
    assert events["oom_kill"] == 1
    assert group.stats()["memory"]["usage"]["failcnt"] == events["max"] > 0
    watch.close()


def test_a_kill_of_the_whole_group_when_memory_runs_out(group: Group) -> None:
    group.set({"memory": {"limit": 32 << 20, "swap": 32 << 20}, "unified": {"memory.oom.group": "1"}})
    bystander = inside(group, signal.pause, wait=False)
    while bystander not in group.pids():
        os.sched_yield()

    def eat() -> None:
        kept = []
        while True:
            kept.append(b"x" * (1 << 20))

    assert os.WTERMSIG(inside(group, eat)) == signal.SIGKILL
    assert os.WTERMSIG(os.waitpid(bystander, 0)[1]) == signal.SIGKILL


def test_a_limit_below_the_usage_is_refused_when_asked_to_check(group: Group) -> None:
    pid = inside(group, signal.pause, wait=False)
    while group.memory_usage() < 8192:
        os.sched_yield()
    with pytest.raises(InvalidInput, match=r"linux\.resources\.memory\.limit: 4096 is less"):
        group.set({"memory": {"limit": 4096, "checkBeforeUpdate": True}})
    assert value(group, "memory.max") == "max"
    assert group.pids() == [pid]


def test_pids(group: Group) -> None:
    group.set({"pids": {"limit": 3}})

    def fork() -> None:
        for _ in range(2):
            if os.fork() == 0:
                signal.pause()
        try:
            os.fork()
        except BlockingIOError:
            os._exit(42)

    assert os.waitstatus_to_exitcode(inside(group, fork)) == 42
    assert read_pairs(f"{group.paths()['']}/pids.events")["max"] == 1
    assert group.stats()["pids"] == {"current": 2, "limit": 3}


def test_unified_keys_are_written_as_they_are_and_last(group: Group) -> None:
    group.set(
        {
            "memory": {"limit": 64 << 20},
            "unified": {"memory.max": str(32 << 20), "memory.high": str(16 << 20), "cpu.weight": "7"},
        }
    )
    assert value(group, "memory.max") == str(32 << 20)
    assert value(group, "memory.high") == str(16 << 20)
    assert value(group, "cpu.weight") == "7"
    with pytest.raises(SampanError, match=r"no\.such"):
        group.set({"unified": {"no.such": "1"}})
    with pytest.raises(InvalidInput, match="unified"):
        group.set({"unified": {"../cgroup.procs": "1"}})
    with pytest.raises(Unsupported, match=r"memory\.kernel"):
        group.set({"memory": {"kernel": 1}})


def test_disk_writes_are_throttled_and_counted(group: Group) -> None:
    disk = Path("/sys/block/vda/dev")
    if not disk.exists() or os.stat("/tmp").st_dev != os.makedev(*map(int, disk.read_text().split(":"))):
        pytest.skip("/tmp is on no disk of its own")
    major, minor = map(int, disk.read_text().split(":"))
    limit = {"major": major, "minor": minor, "rate": 1 << 20}
    group.set({"blockIO": {"weight": 500, "throttleWriteBpsDevice": [limit]}})
    assert value(group, "io.weight") == "default 4950"
    assert f"{major}:{minor} rbps=max wbps={1 << 20}" in value(group, "io.max")
    path = f"/tmp/sampan-test-io-{os.getpid()}"

    def write() -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
        os.write(fd, mmap.mmap(-1, 3 << 20))  # O_DIRECT wants pages
        os.fsync(fd)

    began = time.monotonic()
    try:
        assert inside(group, write) == 0
    finally:
        os.unlink(path)
    assert time.monotonic() - began > 1.5
    counted = group.stats()["blkio"]["ioServiceBytesRecursive"]
    assert {"major": major, "minor": minor, "op": "Write"}.items() <= counted[1].items()
    assert sum(each["value"] for each in counted if each["op"] == "Write") >= 3 << 20


def test_huge_pages(group: Group) -> None:
    pages = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
    if not pages.exists():
        pytest.skip("the machine has no pages of 2 MB")
    before = pages.read_text()
    pages.write_text("4")
    try:
        if int(pages.read_text()) < 4:
            pytest.skip("the machine's memory is too much in pieces for huge pages")
        group.set({"hugepageLimits": [{"pageSize": "2MB", "limit": 2 << 20}]})
        assert value(group, "hugetlb.2MB.max") == str(2 << 20)

        def touch(count: int) -> Callable[[], None]:
            huge = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000  # MAP_HUGETLB

            def work() -> None:
                try:
                    mapped = mmap.mmap(-1, count << 21, flags=huge)
                except OSError:
                    os._exit(42)
                for page in range(count):
                    mapped[page << 21] = 1

            return work

        assert inside(group, touch(1)) == 0
        # The reservation is limited too, so that mmap(2) fails rather than the first use.
        assert value(group, "hugetlb.2MB.rsvd.max") == str(2 << 20)
        assert os.waitstatus_to_exitcode(inside(group, touch(2))) == 42
        with pytest.raises(Unsupported, match=r"linux\.resources\.hugepageLimits\[3MB\]: the group has no hugetlb"):
            group.set({"hugepageLimits": [{"pageSize": "3MB", "limit": 1}]})
    finally:
        pages.write_text(before)


def test_pressure_is_told(group: Group) -> None:
    group.set({"cpu": {"quota": 5_000, "period": 100_000}})
    inside(group, lambda: spin(0.05))
    stats = group.stats()
    for name in ("cpu", "memory", "blkio"):
        assert set(stats[name]["psi"]) >= {"some", "full"}, name
        assert set(stats[name]["psi"]["some"]) == {"avg10", "avg60", "avg300", "total"}
    assert stats["cpu"]["psi"]["some"]["total"] > 0


def test_cgroup_kill_takes_all_below_at_once(group: Group) -> None:
    below = open_group(f"{group.path}/a/b")
    below.create()
    pids = [inside(below, signal.pause, wait=False) for _ in range(3)]
    while sorted(group.pids()) != sorted(pids):
        os.sched_yield()
    group.freeze()
    assert group.frozen()
    group.kill()
    assert all(os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL for pid in pids)
    assert not group.frozen()


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    tmp_path.chmod(0o755)
    made = Box(tmp_path)
    made.linux["cgroupsPath"] = f"/sampan-test-v2/{made.container_id}"
    made.config["mounts"].append({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"})
    yield made
    made.discard()
    assert not os.path.exists("/sys/fs/cgroup/sampan-test-v2")


def test_a_container_sees_its_group_as_the_root(box: Box) -> None:
    box.linux["resources"] = {"memory": {"limit": 64 << 20}, "unified": {"memory.high": str(32 << 20)}}
    seen = box.sh("cat /proc/self/cgroup; cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory.high; ls /sys/fs/cgroup")
    assert seen.splitlines()[:3] == ["0::/", str(64 << 20), str(32 << 20)]
    assert "sampan-test-v2" not in seen


def test_without_a_namespace_it_sees_where_it_is(box: Box) -> None:
    kinds = box.linux["namespaces"]
    box.linux["namespaces"] = [kind for kind in kinds if kind["type"] != "cgroup"]
    assert box.sh("cat /proc/self/cgroup") == f"0::{box.linux['cgroupsPath']}"


def test_a_container_may_divide_its_group_but_not_enlarge_it(box: Box) -> None:
    box.linux["resources"] = {"pids": {"limit": 50}}
    script = """
        cd /sys/fs/cgroup
        mkdir leaf && echo 0 > leaf/cgroup.procs && cat /proc/self/cgroup
        echo +pids > cgroup.subtree_control && echo 5 > leaf/pids.max && cat leaf/pids.max
        echo 100 > pids.max 2>/dev/null && echo enlarged || cat pids.max
        """
    options = read_file("/proc/self/mountinfo")
    wanted = ["0::/leaf", "5", "50"] if "nsdelegate" in options else ["0::/leaf", "5"]
    assert box.sh(script).splitlines()[: len(wanted)] == wanted


def test_root_of_a_user_namespace_owns_its_group(box: Box) -> None:
    os.chown(box.rootfs, 100_000, 100_000)
    box.linux["namespaces"].append({"type": "user"})
    maps = [{"containerID": 0, "hostID": 100_000, "size": 65_536}]
    box.linux["uidMappings"] = box.linux["gidMappings"] = maps
    box.config["mounts"] = [mount for mount in box.config["mounts"] if mount["type"] != "mqueue"]
    box.linux["resources"] = {"memory": {"limit": 64 << 20}}
    script = """
        cd /sys/fs/cgroup
        stat -c %u . cgroup.procs cgroup.subtree_control memory.max
        mkdir leaf && echo 0 > leaf/cgroup.procs && cat /proc/self/cgroup
        echo 1 2>/dev/null > memory.max || echo kept
        """
    assert box.sh(script).splitlines() == ["0", "0", "0", "65534", "0::/leaf", "kept"]


def test_a_read_only_group_of_a_user_namespace_stays_the_machines(box: Box) -> None:
    os.chown(box.rootfs, 100_000, 100_000)
    box.linux["namespaces"].append({"type": "user"})
    maps = [{"containerID": 0, "hostID": 100_000, "size": 65_536}]
    box.linux["uidMappings"] = box.linux["gidMappings"] = maps
    box.config["mounts"] = [mount for mount in box.config["mounts"] if mount["type"] != "mqueue"]
    box.config["mounts"][-1]["options"] = ["ro"]
    assert box.sh("stat -c %u /sys/fs/cgroup; mkdir /sys/fs/cgroup/leaf 2>/dev/null || echo kept") == "65534\nkept"
