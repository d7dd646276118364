"""Pods and containers through the engine, on the real kernel: the Python API's own promises."""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from engine_world import World, world

from sampan.engine.config import HandlerConfig
from sampan.engine.engine import Engine
from sampan.engine.model import (
    ContainerSpec,
    IdMapping,
    Metadata,
    Mount,
    Namespaces,
    PodRecord,
    PodSpec,
    PortMapping,
    Resources,
    Security,
)
from sampan.errors import AlreadyExists, InvalidInput, NotFound, SampanError, TimedOut, WrongState
from sampan.storage import database


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("engine")) as made:
        yield made


@pytest.fixture
def engine(here: World) -> Iterator[Engine]:
    opened = here.engine()
    yield opened
    for pod in opened.pods.list():
        opened.pods.remove(pod.id)
    assert opened.container_records.list() == []
    assert here.mounts() == []
    assert os.listdir(f"{here.folder}/state/ns") == os.listdir(f"{here.folder}/state/pods") == []
    opened.close()


def pod(engine: Engine, name: str = "p", **fields: object) -> PodRecord:
    fields.setdefault("network", "none")
    return engine.pods.run(PodSpec(metadata=Metadata(name), **fields))  # type: ignore[arg-type]


def container(here: World, *command: str, name: str = "c", **fields: object) -> ContainerSpec:
    given: dict[str, Any] = {"metadata": Metadata(name), "image": here.image, "command": command, **fields}
    return ContainerSpec(**given)


def run(engine: Engine, pod_id: str, spec: ContainerSpec) -> str:
    made = engine.containers.create(pod_id, spec)
    engine.containers.start(made.id)
    return made.id


def test_a_container_runs_ends_and_says_how(here: World, engine: Engine) -> None:
    cid = run(engine, pod(engine).id, container(here, "sh", "-c", "exit 7"))
    assert engine.containers.wait(cid, 10) == 7
    record = engine.containers.get(cid)
    assert (record.state, record.reason) == ("exited", "Error")
    assert record.created_at <= record.started_at <= record.finished_at
    kinds = [event.kind for event in engine.events.since(0) if cid in (event.container_id, "")]
    assert kinds[-3:] == ["created", "started", "stopped"]


def test_the_same_request_again_gets_the_same_pod_and_container(here: World, engine: Engine) -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = {future.result().id for future in [pool.submit(pod, engine) for _ in range(8)]}
    assert len(ids) == 1
    (pod_id,) = ids
    spec = container(here, "sleep", "100")
    with ThreadPoolExecutor(8) as pool:
        made = {f.result().id for f in [pool.submit(engine.containers.create, pod_id, spec) for _ in range(8)]}
    assert len(made) == 1
    with pytest.raises(AlreadyExists):
        engine.pods.run(PodSpec(metadata=Metadata("p"), network="none"), exclusive=True)


def test_containers_of_a_pod_share_network_ipc_and_when_asked_pids(here: World, engine: Engine) -> None:
    shared = pod(engine, namespaces=Namespaces(pid="pod"))
    modes = Namespaces(pid="pod")
    one = run(engine, shared.id, container(here, "sleep", "100", name="one", namespaces=modes))
    two = run(engine, shared.id, container(here, "sleep", "200", name="two"))
    seen = engine.containers.exec_sync(one, ["ps"]).stdout.decode()
    assert "/pause" in seen
    assert "sleep 100" in seen
    assert "sleep 200" not in seen
    links = {
        kind: {os.readlink(f"/proc/{engine.containers.get(c).pid}/ns/{kind}") for c in (one, two)}
        for kind in ("net", "ipc", "uts", "pid", "mnt")
    }
    assert {kind: len(found) for kind, found in links.items()} == {"net": 1, "ipc": 1, "uts": 1, "pid": 2, "mnt": 2}


def test_a_target_must_be_of_the_same_pod(here: World, engine: Engine) -> None:
    one, other = pod(engine), pod(engine, "q")
    cid = run(engine, one.id, container(here, "sleep", "100", name="one"))
    modes = Namespaces(pid="target", target_id=cid)
    with pytest.raises(InvalidInput, match="is of another pod"):
        engine.containers.create(other.id, container(here, "sleep", "100", namespaces=modes))
    assert [found.id for found in engine.containers.list()] == [cid]
    two = run(engine, one.id, container(here, "sleep", "200", name="two", namespaces=modes))
    assert "sleep 100" in engine.containers.exec_sync(two, ["ps"]).stdout.decode()


MAPPING = (IdMapping(0, 1 << 20, 65536),)
MAPPED = Namespaces(uid_mappings=MAPPING, gid_mappings=MAPPING)


def test_a_pods_files_are_its_roots_to_write(here: World, engine: Engine) -> None:
    p = pod(engine, hostname="web", namespaces=MAPPED)
    cid = run(engine, p.id, container(here, "sleep", "100", namespaces=MAPPED))
    append = "for name in hosts hostname resolv.conf; do echo '# more' >> /etc/$name && stat -c %u:%g /etc/$name; done"
    assert engine.containers.exec_sync(cid, ["sh", "-c", append]).stdout == b"0:0\n" * 3
    assert engine.containers.exec_sync(cid, ["cat", "/etc/hostname"]).stdout == b"web\n# more\n"


@pytest.mark.parametrize(
    ("had", "wanted"),
    [
        (Namespaces(), MAPPED),
        (MAPPED, Namespaces(uid_mappings=(IdMapping(0, 2 << 20, 65536),), gid_mappings=MAPPING)),
        (MAPPED, Namespaces(uid_mappings=MAPPING, gid_mappings=(IdMapping(0, 1 << 20, 1),))),
    ],
)
def test_a_container_is_given_no_other_user_namespace_than_it_asks_for(
    here: World, engine: Engine, had: Namespaces, wanted: Namespaces
) -> None:
    p = pod(engine, namespaces=had)
    with pytest.raises(InvalidInput, match=r"^namespaces\.[ug]id_mappings: differs from the pod's"):
        engine.containers.create(p.id, container(here, "true", namespaces=wanted))


def test_limits_reach_the_kernel_and_can_be_changed(here: World, engine: Engine) -> None:
    limits = Resources(cpu_period=100_000, cpu_quota=10_000, memory_limit=32 << 20, pids_limit=50)
    cid = run(engine, pod(engine).id, container(here, "sleep", "100", resources=limits))
    read = ["cat", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
    if os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        read = ["cat", "/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/memory.max"]
    before = engine.containers.exec_sync(cid, read).stdout.split()
    assert before[0] == b"10000"
    assert before[-1] == b"33554432"
    engine.containers.update(cid, Resources(memory_limit=48 << 20))
    assert engine.containers.exec_sync(cid, read).stdout.split()[-1] == b"50331648"
    assert engine.containers.get(cid).resources.cpu_quota == 10_000


def test_running_out_of_memory_is_said_to_be_that(here: World, engine: Engine) -> None:
    hog = container(here, "sh", "-c", "tail /dev/zero", resources=Resources(memory_limit=16 << 20))
    cid = run(engine, pod(engine).id, hog)
    assert engine.containers.wait(cid, 30) == 137
    assert engine.containers.get(cid).reason == "OOMKilled"


def test_stop_asks_first_and_kills_after_the_time(here: World, engine: Engine) -> None:
    p = pod(engine)
    polite = run(engine, p.id, container(here, "sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.1; done", name="a"))
    deaf = run(engine, p.id, container(here, "sh", "-c", "trap '' TERM; while :; do sleep 0.1; done", name="b"))
    engine.containers.stop(polite, 20)
    assert engine.containers.get(polite).exit_code == 3
    began = time.monotonic()
    engine.containers.stop(deaf, 0.3)
    assert engine.containers.get(deaf).exit_code == 137
    assert time.monotonic() - began >= 0.3


def test_exec_collects_output_and_code_and_a_timeout_ends_the_whole_group(here: World, engine: Engine) -> None:
    cid = run(engine, pod(engine).id, container(here, "sleep", "100"))
    result = engine.containers.exec_sync(cid, ["sh", "-c", "echo out; echo err >&2; exit 5"])
    assert (result.stdout, result.stderr, result.exit_code) == (b"out\n", b"err\n", 5)
    with pytest.raises(TimedOut):
        engine.containers.exec_sync(cid, ["sh", "-c", "sleep 77 & sleep 78"], timeout=0.3)
    assert "sleep 7" not in engine.containers.exec_sync(cid, ["ps"]).stdout.decode()
    with pytest.raises(SampanError, match="nosuch"):
        engine.containers.exec_sync(cid, ["nosuch"])


def test_exec_output_is_bounded(here: World, engine: Engine) -> None:
    cid = run(engine, pod(engine).id, container(here, "sleep", "100"))
    bound = engine.config.max_exec_output
    result = engine.containers.exec_sync(cid, ["head", "-c", str(bound + 5_000_000), "/dev/zero"])
    assert len(result.stdout) == bound
    assert result.exit_code == 0


def test_a_host_port_leads_into_the_pod(here: World, engine: Engine) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    p = pod(engine, network="", ports=(PortMapping(8080, port),))
    serve = "mkdir -p /w; echo hello > /w/index.html; exec httpd -f -p 8080 -h /w"
    run(engine, p.id, container(here, "sh", "-c", serve))
    for address, number in ((p.ips[0], 8080), ("127.0.0.1", port)):
        assert b"hello" in fetch(address, number)
    engine.pods.stop(p.id)
    with pytest.raises(ConnectionRefusedError):
        fetch("127.0.0.1", port)


def fetch(address: str, port: int) -> bytes:
    deadline = time.monotonic() + 10
    while True:
        try:
            with socket.create_connection((address, port), timeout=2) as sock:
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return b"".join(iter(lambda: sock.recv(4096), b""))
        except ConnectionRefusedError:
            if time.monotonic() > deadline or port != 8080:
                raise
            time.sleep(0.02)


def test_volumes_are_seen_and_readonly_ones_are_not_written(here: World, engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("from the machine")
    mounts = (Mount("/rw", str(tmp_path)), Mount("/ro", str(tmp_path), readonly=True))
    cid = run(engine, pod(engine).id, container(here, "sleep", "100", mounts=mounts))
    assert engine.containers.exec_sync(cid, ["cat", "/ro/f"]).stdout == b"from the machine"
    assert engine.containers.exec_sync(cid, ["touch", "/ro/x"]).exit_code != 0
    assert engine.containers.exec_sync(cid, ["touch", "/rw/x"]).exit_code == 0
    assert (tmp_path / "x").exists()


def test_a_volume_hides_no_file_of_the_pod(here: World, engine: Engine, tmp_path: Path) -> None:
    for name in ("hosts", "hostname", "resolv.conf"):
        (tmp_path / name).write_text("of the volume")
    p = pod(engine, hostname="web")
    volume = container(here, "sleep", "100", mounts=(Mount("/etc", str(tmp_path), readonly=True),))
    machines = container(here, "sleep", "100", name="d", mounts=(Mount("/dev", "/dev"),))
    cid, other = run(engine, p.id, volume), run(engine, p.id, machines)
    assert engine.containers.exec_sync(cid, ["cat", "/etc/hostname"]).stdout == b"web\n"
    assert engine.containers.exec_sync(cid, ["touch", "/dev/shm/of-the-pod"]).exit_code == 0
    assert engine.containers.exec_sync(other, ["ls", "/dev/shm"]).stdout == b"of-the-pod\n"


@pytest.mark.parametrize("path", ["/dev", "/proc", "/sys", "/sys/fs/cgroup"])
def test_the_machines_own_file_systems_may_be_volumes(here: World, engine: Engine, path: str) -> None:
    security = Security(privileged=True, readonly_rootfs=True)
    spec = container(here, "sleep", "100", mounts=(Mount(path, path),), security=security)
    cid = run(engine, pod(engine).id, spec)
    seen = engine.containers.exec_sync(cid, ["stat", "-c", "%d", path])
    assert (seen.stdout, seen.stderr) == (b"%d\n" % os.stat(path).st_dev, b"")


def test_a_container_over_a_directory_leaves_it_alone(here: World, engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sh").write_bytes(Path("/bin/busybox").read_bytes())
    (tmp_path / "bin/sh").chmod(0o755)
    spec = ContainerSpec(metadata=Metadata("c"), rootfs=str(tmp_path), command=("/bin/sh", "-c", "echo x > /new"))
    cid = run(engine, pod(engine).id, spec)
    assert engine.containers.wait(cid, 10) == 0
    assert sorted(os.listdir(tmp_path)) == ["bin"]


def test_another_runtime_runs_the_container(here: World, engine: Engine) -> None:
    p = pod(engine, handler="runc")
    cid = run(engine, p.id, container(here, "sh", "-c", "echo from runc; sleep 100", log_path=""))
    assert engine.containers.exec_sync(cid, ["echo", "hi"]).stdout == b"hi\n"
    assert os.path.exists(f"{engine.layout.runtime('runc')}/{cid}/state.json")
    engine.containers.stop(cid, 0)
    assert engine.containers.get(cid).exit_code == 137


@pytest.mark.parametrize("given", [True, False])
def test_a_privileged_container_has_the_machines_devices_if_its_handler_gives_them(
    here: World, engine: Engine, given: bool
) -> None:
    handlers = {"sampan": HandlerConfig(privileged_host_devices=given)}
    engine.config = msgspec.structs.replace(engine.config, handlers=handlers)
    cid = run(engine, pod(engine).id, container(here, "sleep", "100", security=Security(privileged=True)))
    tried = engine.containers.exec_sync(cid, ["sh", "-c", "mknod /kmsg c 1 11; head -c 0 /kmsg; ls /dev/kmsg"])
    assert (tried.exit_code == 0) is (tried.stderr == b"") is given


def test_stats_speak_of_the_container(here: World, engine: Engine) -> None:
    cid = run(engine, pod(engine).id, container(here, "sh", "-c", "dd if=/dev/zero of=/f bs=1M count=3; sleep 100"))
    deadline = time.monotonic() + 10
    while engine.containers.stats(cid).fs_used_bytes < 3 << 20 and time.monotonic() < deadline:
        time.sleep(0.02)
    stats = engine.containers.stats(cid)
    assert stats.fs_used_bytes >= 3 << 20
    assert stats.memory_usage > 0
    assert stats.cpu_usage_ns > 0
    assert stats.pids >= 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sysctls": {"kernel.panic": "1"}}, "belongs to no namespace"),
        ({"sysctls": {"net.ipv4.ip_forward+kernel.core_pattern": "x"}}, "sysctl"),
        ({"sysctls": {"net/../../etc": "x"}}, "sysctl"),
        ({"hostname": "a/b"}, "host name"),
        ({"handler": "nosuch"}, "no runtime handler"),
        ({"cgroup_parent": "/../../x"}, "cgroup"),
        ({"network": "nosuch"}, "nosuch"),
        ({"namespaces": msgspec.structs.replace(MAPPED, network="node")}, "uid_mappings: can't be had"),
        ({"ports": (PortMapping(80, 70000),)}, "no port"),
    ],
)
def test_a_bad_pod_is_refused_and_nothing_is_left(engine: Engine, fields: dict[str, object], message: str) -> None:
    with pytest.raises(SampanError, match=message):
        pod(engine, **fields)  # type: ignore[arg-type]
    assert engine.pod_records.list() == []


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"image": "nosuch.example/x:1"}, NotFound),
        ({"image": "UPPER//x"}, InvalidInput),
        ({"command": ("/nosuch",)}, SampanError),
        ({"working_dir": "relative"}, InvalidInput),
        ({"mounts": (Mount("relative", "/tmp"),)}, InvalidInput),
        ({"mounts": (Mount("/x", "relative"),)}, InvalidInput),
        ({"security": Security(username="nobody-knows")}, InvalidInput),
        ({"security": Security(username="4294967296")}, InvalidInput),
        ({"security": Security(add_capabilities=("SYS_NONSENSE",))}, InvalidInput),
        ({"log_path": "../../etc/x"}, InvalidInput),
        ({"resources": Resources(memory_limit=1)}, SampanError),
    ],
)
def test_a_bad_container_is_refused_and_nothing_is_left(
    here: World, engine: Engine, fields: dict[str, object], error: type[Exception]
) -> None:
    p = pod(engine)
    before = here.mounts()
    with pytest.raises(error):
        engine.containers.create(p.id, container(here, **{"command": ("true",), **fields}))  # type: ignore[arg-type]
    assert engine.container_records.list() == []
    assert here.mounts() == before
    assert engine.monitor(p.id).info()["containers"] == []


def test_what_has_ended_refuses_with_its_state(here: World, engine: Engine) -> None:
    p = pod(engine)
    cid = run(engine, p.id, container(here, "true"))
    engine.containers.wait(cid, 10)
    for call in (engine.containers.start, lambda c: engine.containers.exec_sync(c, ["true"])):
        with pytest.raises(WrongState, match="exited"):
            call(cid)
    engine.containers.stop(cid, 0)
    engine.pods.stop(p.id)
    engine.pods.stop(p.id)
    with pytest.raises(WrongState):
        engine.containers.create(p.id, container(here, "true", name="late"))


def test_two_engines_see_each_others_work(here: World, engine: Engine) -> None:
    other = here.engine()
    try:
        p = pod(engine)
        cid = run(engine, p.id, container(here, "sleep", "100"))
        assert other.containers.get(cid).state == "running"
        waited: list[int] = []
        waiter = threading.Thread(target=lambda: waited.append(engine.containers.wait(cid, 20)))
        waiter.start()
        other.containers.kill(cid, signal.SIGKILL)
        waiter.join(20)
        assert waited == [137]
        other.pods.remove(p.id)
        with pytest.raises(NotFound):
            engine.pods.get(p.id)
    finally:
        other.close()


def test_a_hung_container_delays_no_list(here: World, engine: Engine) -> None:
    p = pod(engine)
    script = "trap 'echo deaf > /told' TERM; while :; do sleep 0.1; done"
    cid = run(engine, p.id, container(here, "sh", "-c", script))
    stopper = threading.Thread(target=engine.containers.stop, args=(cid, 1000), daemon=True)
    stopper.start()
    while engine.containers.exec_sync(cid, ["cat", "/told"]).exit_code:
        pass  # the stop is not under way yet
    assert [c.state for c in engine.containers.list()] == ["running"]
    assert engine.containers.exec_sync(cid, ["true"]).exit_code == 0
    assert stopper.is_alive()
    engine.containers.kill(cid, signal.SIGKILL)
    stopper.join(20)
    assert not stopper.is_alive()


def test_a_pod_whose_monitor_was_killed_is_ended_and_can_be_removed(here: World, engine: Engine) -> None:
    p = pod(engine)
    cid = run(engine, p.id, container(here, "sleep", "100"))
    pid = engine.containers.get(cid).pid
    kill_monitor(engine, p.id)
    engine.recover()
    record = engine.containers.get(cid)
    assert (record.state, record.exit_code, record.reason) == ("exited", 255, "Unknown")
    assert not os.path.exists(f"/proc/{pid}/exe") or not os.readlink(f"/proc/{pid}/exe").endswith("busybox")
    assert engine.pods.get(p.id).state == "notready"


@pytest.mark.parametrize("handler", ["sampan", "runc"])
def test_a_runtime_keeps_nothing_of_a_container_whose_monitor_was_killed(
    here: World, engine: Engine, handler: str
) -> None:
    p = pod(engine, handler=handler)
    cid = run(engine, p.id, container(here, "sleep", "100"))
    state = Path(engine.layout.runtime(handler), cid)
    assert state.is_dir()
    kill_monitor(engine, p.id)
    engine.pods.stop(p.id)
    assert not state.exists()


def test_state_of_containers_that_nobody_knows_is_collected(here: World, engine: Engine) -> None:
    other = here.engine("k8s.io")
    try:
        elsewhere = Path(engine.layout.runtime("sampan"))
        known = elsewhere / other.containers.create(pod(other).id, container(here, "true")).id
        foreign = elsewhere / ("a" * 64)
        bundle = Path(engine.layout.bundle("b" * 64, foreign.name))
        unknown = elsewhere / ("c" * 64)
        strange = elsewhere / "somebodys"
        for folder in (foreign, bundle, unknown, strange):
            folder.mkdir(parents=True)
        (unknown / "config.json").write_text("{}")
        engine.recover()
        assert [folder.exists() for folder in (known, foreign, strange, unknown)] == [True, True, True, False]
        for folder in (foreign, bundle, bundle.parent, strange):
            folder.rmdir()
    finally:
        for each in other.pods.list():
            other.pods.remove(each.id)
        other.close()


def kill_monitor(engine: Engine, pod_id: str) -> None:
    with open(f"{engine.layout.pod(pod_id)}/monitor.json") as file:
        os.kill(json.load(file)["pid"], signal.SIGKILL)


@pytest.mark.parametrize("what", ["monitor", "pause"])
def test_a_pod_that_ends_by_itself_is_told_not_to_be_ready(here: World, engine: Engine, what: str) -> None:
    engine.watch()
    p = pod(engine, namespaces=Namespaces(network="pod", pid="pod"))
    cid = run(engine, p.id, container(here, "sleep", "100", namespaces=Namespaces(network="pod", pid="pod")))
    if what == "monitor":
        kill_monitor(engine, p.id)
    else:
        os.kill(engine.pods.get(p.id).pause_pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while engine.pods.get(p.id).state == "ready" or engine.containers.get(cid).state != "exited":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    engine.pods.stop(p.id)
    assert engine.pods.get(p.id).state == "notready"
    kinds = [event.kind for event in engine.events.since(0) if event.pod_id == p.id]
    assert kinds.count("pod-stopped") == 1
    # Another of the same name takes its place.
    engine.pods.remove(p.id)
    pod(engine)


def test_a_pod_is_stopped_and_removed_while_its_containers_are(
    here: World, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = pod(engine)
    gone = run(engine, p.id, container(here, "true", name="gone"))
    kept = run(engine, p.id, container(here, "sleep", "100", name="kept"))
    listed = engine.containers.list(pod_id=p.id)
    engine.containers.remove(gone)
    # As if the one had been removed right after the list was made.
    monkeypatch.setattr(engine.containers, "list", lambda **_: listed)
    engine.pods.stop(p.id)
    assert (engine.pods.get(p.id).state, engine.containers.get(kept).state) == ("notready", "exited")
    engine.pods.remove(p.id)
    monkeypatch.undo()
    with pytest.raises(NotFound):
        engine.pods.get(p.id)


def test_a_half_made_pod_is_found_and_removed(here: World, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    class Crash(BaseException):
        pass

    def crash(*_: object) -> None:
        raise Crash

    monkeypatch.setattr(engine.pods, "_attach", crash)
    monkeypatch.setattr(engine.pods, "discard", lambda _: None)
    with pytest.raises(Crash):
        pod(engine, network="")
    monkeypatch.undo()
    (left,) = engine.pod_records.list()
    assert left.state == "creating"
    assert engine.pods.list() == []
    engine.recover()
    assert engine.pod_records.list() == []


class _Told(logging.Handler):
    """Lets a test wait for a line of the log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: queue.Queue[str] = queue.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.put(record.getMessage())


def test_a_store_that_is_busy_at_an_exit_costs_neither_other_containers_nor_later_events(
    here: World, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.2)  # of connections to come: the watch has a thread of its own
    told = _Told()
    logging.getLogger("sampan.engine.watch").addHandler(told)
    p = pod(engine)
    one, two = (run(engine, p.id, container(here, "sleep", "1000", name=name)) for name in ("one", "two"))
    engine.watch()
    busy = sqlite3.connect(f"{here.folder}/root/meta.db", isolation_level=None)
    try:
        busy.execute("BEGIN IMMEDIATE")
        engine.monitor(p.id).signal(one, 9)
        assert one[:12] in told.lines.get(timeout=20)
    finally:
        busy.close()
        logging.getLogger("sampan.engine.watch").removeHandler(told)
    follower = engine.events.subscribe()
    assert engine.containers.get(two).state == "running"
    engine.monitor(p.id).signal(two, 9)
    event = follower.get(20)
    assert event is not None
    assert (event.kind, event.container_id) == ("stopped", two)
    assert engine.containers.get(one).exit_code == 137
