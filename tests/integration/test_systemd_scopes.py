"""The systemd driver under a real systemd on cgroup v2: in the virtual machine, or on any machine that has both."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cri_daemon import Daemon, busybox_daemon

from group_children import reap, spawn
from sampan.cgroup import mode, open_group
from sampan.cgroup.hierarchy import read_file
from sampan.cri import api_pb2 as pb
from sampan.errors import InvalidInput, SampanError

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not os.path.isdir("/run/systemd/system"), reason="systemd is not the init here"),
    pytest.mark.skipif(mode() != "v2", reason="systemd divides its groups otherwise on cgroup v1"),
]

LAUNCH = Path(__file__).parents[2] / "src/sampan/cli/runtime_launch.py"
POD = "kubepods-besteffort-podsampantest.slice"
POD_PATH = f"/kubepods.slice/kubepods-besteffort.slice/{POD}"
NO_LIMIT = "infinity"
LIMITS = {
    "cpu": {"shares": 512, "quota": 12_345, "period": 100_000, "cpus": "0"},
    "memory": {"limit": 64 << 20, "reservation": 32 << 20},
    "pids": {"limit": 33},
    "unified": {"memory.high": str(48 << 20)},
}


def show(unit: str) -> dict[str, str]:
    """What systemd says of a unit; DeviceAllow is one line for each device."""
    text = subprocess.run(["systemctl", "show", unit], check=True, capture_output=True, text=True).stdout
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition("=")
        found[key] = f"{found[key]}, {value}" if key == "DeviceAllow" and key in found else value
    return found


def gone(unit: str) -> bool:
    return show(unit)["LoadState"] == "not-found"


@pytest.fixture
def pod_slice() -> Iterator[str]:
    """A kubelet's slice of a pod, which is stopped at last."""
    yield POD
    subprocess.run(["systemctl", "stop", POD], check=False, capture_output=True)


@pytest.fixture
def name(pod_slice: str) -> Iterator[str]:
    """A container's name; its scope is stopped if the test leaves it."""
    chosen = f"t{os.getpid()}"
    yield chosen
    subprocess.run(["systemctl", "stop", f"cri-{chosen}.scope", pod_slice], check=False, capture_output=True)
    reap()


def test_a_scope_in_a_kubelets_slice(name: str) -> None:
    group = open_group(f"{POD}:cri:{name}", systemd=True)
    unit = f"cri-{name}.scope"
    group.create()
    group.set(LIMITS)
    group.set_devices([{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "major": 1, "minor": 11}])
    pid = spawn(group)
    del group
    again = open_group(f"{POD}:cri:{name}", systemd=True)
    told = show(unit)
    assert (told["ActiveState"], told["Slice"], told["ControlGroup"]) == ("active", POD, f"{POD_PATH}/{unit}")
    assert (told["Delegate"], told["CollectMode"]) == ("yes", "inactive-or-failed")
    assert (told["MemoryMax"], told["MemoryLow"]) == (str(64 << 20), str(32 << 20))
    assert told["MemoryHigh"] == str(48 << 20)
    assert (told["CPUQuotaPerSecUSec"], told["CPUQuotaPeriodUSec"]) == ("130ms", "100ms")
    assert (told["CPUWeight"], told["AllowedCPUs"], told["TasksMax"]) == ("59", "0", "33")
    assert told["DevicePolicy"] == "strict"
    assert {"/dev/char/1:3 rwm", "/dev/char/1:11 rwm", "char-pts rwm", "char-* m"} <= set(
        told["DeviceAllow"].split(", ")
    )
    assert read_file(f"/proc/{pid}/cgroup") == f"0::{POD_PATH}/{unit}\n"
    directory = again.paths()[""]
    assert read_file(f"{directory}/cpu.max") == "12345 100000\n"  # finer than systemd counts
    assert again.pids() == [pid]
    again.kill()
    os.waitpid(pid, 0)
    again.remove()
    assert gone(unit)
    assert not os.path.exists(directory)
    again.remove()  # nothing is left to do


def test_limits_outlast_a_reload_of_systemd(name: str) -> None:
    group = open_group(f"{POD}:cri:{name}", systemd=True)
    group.create()
    group.set(LIMITS)
    group.set_devices([{"allow": False, "access": "rwm"}])
    spawn(group)
    directory = group.paths()[""]
    files = ("memory.max", "memory.low", "memory.high", "cpu.weight", "pids.max", "cpuset.cpus")
    before = [read_file(f"{directory}/{file}") for file in files]
    assert before == [f"{64 << 20}\n", f"{32 << 20}\n", f"{48 << 20}\n", "59\n", "33\n", "0\n"]
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    subprocess.run(["systemctl", "set-property", "--runtime", POD, "CPUWeight=200"], check=True)
    assert [read_file(f"{directory}/{file}") for file in files] == before
    group.kill()
    group.remove()


def test_an_update_is_systemds_too(name: str) -> None:
    group = open_group(f"{POD}:cri:{name}", systemd=True)
    unit = f"cri-{name}.scope"
    group.create()
    assert show(unit)["TasksMax"] == NO_LIMIT
    spawn(group)
    group.set({"memory": {"limit": 128 << 20}, "cpu": {"quota": 50_000, "period": 100_000}, "pids": {"limit": 7}})
    told = show(unit)
    assert (told["MemoryMax"], told["CPUQuotaPerSecUSec"], told["TasksMax"]) == (str(128 << 20), "500ms", "7")
    group.set({"memory": {"limit": -1}, "cpu": {"quota": -1}, "pids": {"limit": -1}})
    told = show(unit)
    assert (told["MemoryMax"], told["CPUQuotaPerSecUSec"], told["TasksMax"]) == (NO_LIMIT, NO_LIMIT, NO_LIMIT)
    with pytest.raises(InvalidInput, match=r"4096 is less than the \d+ bytes in use"):
        group.set({"memory": {"limit": 4096, "checkBeforeUpdate": True}})
    assert show(unit)["MemoryMax"] == NO_LIMIT  # systemd was not told, so nothing was killed for it
    assert group.pids()
    group.set({"cpu": {"idle": 1}})
    assert show(unit)["CPUWeight"] == "idle"
    assert read_file(f"{group.paths()['']}/cpu.idle") == "1\n"
    group.kill()
    group.remove()


def test_a_scope_that_ran_out_of_memory_leaves_its_name_free(name: str) -> None:
    group = open_group(f"{POD}:cri:{name}", systemd=True)
    group.create()
    group.set({"memory": {"limit": 8 << 20, "swap": 8 << 20}})
    pid = spawn(group, "eat")
    del group
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    again = open_group(f"{POD}:cri:{name}", systemd=True)
    again.remove()
    assert gone(f"cri-{name}.scope")
    again.create()
    assert len(again.pids()) == 1
    again.remove()
    assert gone(f"cri-{name}.scope")


def test_what_systemd_refuses_is_told_in_its_words(name: str) -> None:
    group = open_group(f"{POD}:cri:{name}", systemd=True)
    group.create()
    with pytest.raises(SampanError, match=r"systemd refused SetUnitProperties: .*CPUWeight"):
        group.set({"unified": {"cpu.weight": "20000"}})
    group.remove()


def test_the_runtimes_command(tmp_path: Path, name: str) -> None:
    bundle = tmp_path / "bundle"
    (bundle / "rootfs/bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", bundle / "rootfs/bin/busybox")
    command = [sys.executable, "-I", "-S", str(LAUNCH), "--root", str(tmp_path / "root"), "--systemd-cgroup"]

    def run(*words: str) -> None:
        subprocess.run([*command, *words], cwd=bundle, stdin=-3, stdout=-3, check=True)

    run("spec")
    config = json.loads((bundle / "config.json").read_text())
    config["process"] |= {"args": ["/bin/busybox", "sleep", "1000"], "terminal": False}
    config["linux"]["cgroupsPath"] = f"{POD}:cri:{name}"
    config["linux"]["resources"]["memory"] = {"limit": 64 << 20}
    (bundle / "config.json").write_text(json.dumps(config))
    unit = f"cri-{name}.scope"
    run("create", name)
    run("start", name)
    told = show(unit)
    assert (told["ActiveState"], told["MemoryMax"], told["DevicePolicy"]) == ("active", str(64 << 20), "strict")
    run("exec", name, "/bin/busybox", "true")
    run("update", "--memory", str(96 << 20), "--pids-limit", "50", name)
    told = show(unit)
    assert (told["MemoryMax"], told["TasksMax"]) == (str(96 << 20), "50")
    run("pause", name)
    run("resume", name)
    run("delete", "--force", name)
    assert gone(unit)
    assert not os.path.exists(f"/sys/fs/cgroup{POD_PATH}/{unit}")


class SystemdDaemon(Daemon):
    settings = 'cri.cgroup_driver = "systemd"\n'


@pytest.fixture
def daemon(pod_slice: str, tmp_path: Path) -> Iterator[SystemdDaemon]:
    with busybox_daemon(SystemdDaemon, tmp_path / "registry", "sampansystemd0", "10.89.79.0/24") as server:
        yield server


@pytest.mark.parametrize(
    ("parent", "path"), [(POD_PATH, POD_PATH), (POD, POD_PATH), ("", "/sampan.slice")], ids=["path", "name", "none"]
)
def test_pods_over_cri(daemon: SystemdDaemon, parent: str, path: str) -> None:
    runtime = daemon.runtime
    assert runtime.RuntimeConfig(pb.RuntimeConfigRequest()).linux.cgroup_driver == pb.SYSTEMD
    config = pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name="pod", uid="uid", namespace="default"),
        log_directory=str(daemon.folder / "logs"),
        linux=pb.LinuxPodSandboxConfig(cgroup_parent=parent),
    )
    pod = runtime.RunPodSandbox(pb.RunPodSandboxRequest(config=config)).pod_sandbox_id
    container = pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name="main"),
        image=daemon.image,
        command=["/bin/sleep", "1000"],
        linux=pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(memory_limit_in_bytes=64 << 20)),
    )
    request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=container, sandbox_config=config)
    made = runtime.CreateContainer(request).container_id
    runtime.StartContainer(pb.StartContainerRequest(container_id=made))
    unit = f"sampan-{made}.scope"
    told = show(unit)
    assert (told["Slice"], told["ControlGroup"]) == (os.path.basename(path), f"{path}/{unit}")
    assert (told["ActiveState"], told["MemoryMax"]) == ("active", str(64 << 20))
    ran = runtime.ExecSync(pb.ExecSyncRequest(container_id=made, cmd=["/bin/cat", "/proc/self/cgroup"]))
    assert ran.stdout == b"0::/\n"
    runtime.UpdateContainerResources(
        pb.UpdateContainerResourcesRequest(
            container_id=made, linux=pb.LinuxContainerResources(memory_limit_in_bytes=96 << 20, cpu_quota=20_000)
        )
    )
    told = show(unit)
    assert (told["MemoryMax"], told["CPUQuotaPerSecUSec"]) == (str(96 << 20), "200ms")
    stats = runtime.ContainerStats(pb.ContainerStatsRequest(container_id=made)).stats
    assert stats.memory.usage_bytes.value > 0
    runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod))
    runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
    assert gone(unit)
    assert not list(Path(f"/sys/fs/cgroup{path}").glob("*.scope"))


def test_the_process_that_holds_a_pods_pids_is_in_a_scope(daemon: SystemdDaemon) -> None:
    security = pb.LinuxSandboxSecurityContext(namespace_options=pb.NamespaceOption(pid=pb.POD))
    config = pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name="pod", uid="uid", namespace="default"),
        linux=pb.LinuxPodSandboxConfig(cgroup_parent=POD, security_context=security),
    )
    pod = daemon.runtime.RunPodSandbox(pb.RunPodSandboxRequest(config=config)).pod_sandbox_id
    unit = f"sampan-{pod}.scope"
    told = show(unit)
    assert (told["ActiveState"], told["ControlGroup"]) == ("active", f"{POD_PATH}/{unit}")
    assert read_file(f"/sys/fs/cgroup{POD_PATH}/{unit}/cgroup.procs").split()
    daemon.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod))
    daemon.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
    assert gone(unit)
    assert not list(Path(f"/sys/fs/cgroup{POD_PATH}").glob("*.scope"))
