"""SELinux: labels taken on, refused, enforced. In the virtual machine, under tests/vm/selinux.cil."""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import oci_image
import pytest
from cri_daemon import Daemon, private_daemon
from local_registry import LocalRegistry
from runtime_command import Runtime, private_runtime

from sampan.cri import api_pb2 as pb
from sampan.engine import selinux
from sampan.linux.syscall import syscall

if TYPE_CHECKING:
    from sampan.storage.mount import Mount

ENFORCE = Path("/sys/fs/selinux/enforce")
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not ENFORCE.exists(), reason="this kernel does not run SELinux"),
    pytest.mark.skipif(ENFORCE.exists() and ENFORCE.read_text() != "1", reason="this kernel does not enforce SELinux"),
]

PROCESS = "system_u:system_r:container_t"
FILE = "system_u:object_r:container_file_t"
OWN, OTHER = "s0:c1,c2", "s0:c3,c4"
UNCONFINED = "system_u:system_r:kernel_t:s0-s0:c0.c1023"
NONSENSE = "system_u:system_r:nonsense_t:s0:c1"
CURRENT = "read label < /proc/self/attr/current; echo $label"
SYS_KEYCTL, KEYCTL_GET_SECURITY = 250, 17


def label_of(path: object) -> str:
    return os.getxattr(str(path), "security.selinux", follow_symlinks=False).rstrip(b"\0").decode()


def label_of_process(pid: int) -> str:
    return Path(f"/proc/{pid}/attr/current").read_text().rstrip("\0\n")


def label_of_keyring(name: str) -> str:
    """Of the only session keyring of this name."""
    lines = Path("/proc/keys").read_text().splitlines()
    (number,) = (int(line.split()[0], 16) for line in lines if f" {name}: " in line)
    room = ctypes.create_string_buffer(200)
    syscall(SYS_KEYCTL, KEYCTL_GET_SECURITY, number, room, len(room))
    return room.value.decode()


class KernelLog:
    """What the kernel says from now on."""

    def __init__(self) -> None:
        self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self._fd, 0, os.SEEK_END)

    def wait_for(self, *words: str) -> None:
        """Wait for a line with all of these words in it."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while poll.poll(60_000):
            line = os.read(self._fd, 8192).decode(errors="replace")
            if all(word in line for word in words):
                return
        pytest.fail(f"the kernel said nothing of {words}")

    def close(self) -> None:
        os.close(self._fd)


@pytest.fixture
def kernel_log() -> Iterator[KernelLog]:
    made = KernelLog()
    yield made
    made.close()


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    with private_runtime(tmp_path) as made:
        made.config["process"]["selinuxLabel"] = f"{PROCESS}:{OWN}"
        made.config["linux"]["mountLabel"] = f"{FILE}:{OWN}"
        # Their contents show what is there; that they are hidden is other tests' matter.
        made.config["linux"]["maskedPaths"].remove("/proc/keys")
        made.configure("sleep", "1000")
        selinux.relabel(str(made.bundle / "rootfs"), f"{FILE}:{OWN}")
        yield made


def facts(pid: int) -> dict[str, Any]:
    """What of a container bears a label."""
    root = Path(f"/proc/{pid}/root")
    paths = "/ /bin/busybox /dev /dev/null /dev/shm /dev/pts /dev/ptmx /dev/mqueue /sys/firmware /proc/1/status /sys"
    found: dict[str, Any] = {path: label_of(f"{root}{path}") for path in paths.split()}
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[3] == "/null":  # of a masked file: runc takes the container's, which has its label
            continue
        contexts = [word for word in after.split()[2].replace(",c2", ";c2").split(",") if word.startswith("context=")]
        found[f"mount {before.split()[4]}"] = contexts
    found["process"] = label_of_process(pid)
    return found


def test_what_a_container_has_bears_its_labels_as_with_runc(runtime: Runtime) -> None:
    runtime.start("selinux-1")
    found = facts(runtime.state("selinux-1")["pid"])
    assert found["process"] == label_of_keyring("_ses.selinux-1") == f"{PROCESS}:{OWN}"
    labelled = "/ /bin/busybox /dev /dev/null /dev/shm /dev/pts /dev/ptmx /dev/mqueue /sys/firmware".split()
    assert {path: found[path] for path in labelled} == dict.fromkeys(labelled, f"{FILE}:{OWN}")
    assert found["/sys"].endswith(":sysfs_t:s0")
    assert found["mount /dev/shm"] == [f'context="{FILE}:s0:c1;c2"']
    assert found["mount /dev/mqueue"] == found["mount /proc"] == []
    runtime.run("delete", "--force", "selinux-1")

    runc = ["runc", "--root", str(runtime.bundle.parent / "runc")]
    subprocess.run([*runc, "create", "selinux-2"], cwd=runtime.bundle, stdin=-3, stdout=-3, stderr=-3, check=True)
    try:
        state = subprocess.run([*runc, "state", "selinux-2"], capture_output=True, check=True)
        assert label_of_keyring("_ses.selinux-2") == f"{PROCESS}:{OWN}"
        subprocess.run([*runc, "start", "selinux-2"], check=True)
        assert facts(json.loads(state.stdout)["pid"]) == found
    finally:
        subprocess.run([*runc, "delete", "--force", "selinux-2"], check=True)


def test_a_container_is_confined_to_its_own_files(runtime: Runtime, kernel_log: KernelLog, tmp_path: Path) -> None:
    for name, level in {"own": OWN, "other": OTHER, "plain": ""}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(f"of {name}\n")
        if level:
            selinux.relabel(str(tmp_path / name), f"{FILE}:{level}")
        mount = {"destination": f"/{name}", "type": "bind", "source": str(tmp_path / name), "options": ["rbind"]}
        runtime.config["mounts"].append(mount)
    runtime.configure(
        shell="for name in own other plain; do read line < /$name/file && echo $line; done\n"
        "echo > /own/new; echo > /dev/shm/new; echo > /dev/null; /bin/busybox ls /dev/mqueue /sys/firmware\n"
        f"{CURRENT}; /bin/busybox cut -c 60- /proc/keys"
    )
    ended = runtime.run("run", "c1")
    said = ended.stdout.split("\n")
    assert said[:1] + said[1:6] == ["of own", "/dev/mqueue:", "", "/sys/firmware:", f"{PROCESS}:{OWN}", said[5]]
    assert "_ses.c1" in ended.stdout
    assert [line.partition("can't open ")[2] for line in ended.stderr.splitlines()] == [
        "/other/file: Permission denied",
        "/plain/file: Permission denied",
    ]
    assert label_of(tmp_path / "own/new") == f"{FILE}:{OWN}"
    kernel_log.wait_for("avc:  denied", f"scontext={PROCESS}:{OWN}", f"tcontext={FILE}:{OTHER}", "permissive=0")
    kernel_log.wait_for("avc:  denied", f"scontext={PROCESS}:{OWN}", ":file_t:s0", "permissive=0")


def test_hooks_in_the_container_have_its_label_and_read_its_state(runtime: Runtime) -> None:
    said = f"/bin/busybox cat > /dev/shm/state; {CURRENT} >> /dev/shm/state"
    runtime.config["process"]["noNewPrivileges"] = True
    runtime.config["hooks"] = {"startContainer": [{"path": "/bin/busybox", "args": ["sh", "-c", said]}]}
    runtime.configure(shell=f"{CURRENT}; /bin/busybox cat /dev/shm/state")
    label = f"{PROCESS}:{OWN}"
    first, state = runtime.run("run", "c1").stdout.split("\n", 1)
    assert first == label
    assert json.loads(state.removesuffix(f"{label}\n"))["id"] == "c1"


def test_exec_has_the_containers_label_or_its_own(runtime: Runtime, kernel_log: KernelLog) -> None:
    runtime.start("c1")
    assert runtime.run("exec", "c1", "/bin/sh", "-c", CURRENT).stdout == f"{PROCESS}:{OWN}\n"
    more = f"{PROCESS}:s0:c1,c2,c5"
    assert runtime.run("exec", "--process-label", more, "c1", "/bin/sh", "-c", CURRENT).stdout == f"{more}\n"
    # Of other categories, it may not even execute the program.
    runtime.run("exec", "--process-label", f"{PROCESS}:{OTHER}", "c1", "/bin/sh", code=126)
    kernel_log.wait_for("avc:  denied  { entrypoint }", f"scontext={PROCESS}:{OTHER}", f"tcontext={FILE}:{OWN}")
    bad = runtime.run("exec", "--process-label", NONSENSE, "c1", "/bin/sh", code=255).stderr.splitlines()
    assert len(bad) == 1
    assert "process.selinuxLabel" in bad[0]
    assert NONSENSE in bad[0]


@pytest.mark.parametrize("field", ["process.selinuxLabel", "linux.mountLabel"])
def test_a_label_that_the_policy_lacks_is_named_and_nothing_is_left(runtime: Runtime, field: str) -> None:
    part, _, key = field.partition(".")
    runtime.config[part][key] = NONSENSE
    runtime.configure(shell="exit 0")
    said = runtime.run("run", "c1", code=1).stderr.splitlines()
    assert len(said) == 1
    assert f"{field}: this machine's policy has no label {NONSENSE!r}" in said[0]
    assert not runtime.root.exists() or not os.listdir(runtime.root)


def test_a_mount_that_has_a_label_keeps_it(runtime: Runtime) -> None:
    options = [f'context="{FILE}:s0:c1"', "size=64k"]
    runtime.config["mounts"].append({"destination": "/own", "type": "tmpfs", "source": "own", "options": options})
    runtime.configure("sleep", "1000")
    runtime.start("c1")
    root = f"/proc/{runtime.state('c1')['pid']}/root"
    assert [label_of(f"{root}/own"), label_of(f"{root}/dev/shm")] == [f"{FILE}:s0:c1", f"{FILE}:{OWN}"]


def test_labels_in_a_user_namespace(runtime: Runtime) -> None:
    linux = runtime.config["linux"]
    linux["namespaces"].append({"type": "user"})
    linux["uidMappings"] = linux["gidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    os.chown(runtime.bundle / "rootfs", 100000, 100000)
    runtime.configure(shell=f"{CURRENT}; echo > /dev/shm/new && echo > /dev/null && /bin/busybox ls /dev/mqueue")
    assert runtime.run("run", "c1").stdout == f"{PROCESS}:{OWN}\n"


class World(Daemon):
    """A daemon with runc for a second handler."""

    def command(self) -> list[str]:
        """With the handler."""
        found = super().command()
        drop_in = self.folder / "conf.d" / "runc.toml"
        drop_in.parent.mkdir(exist_ok=True)
        drop_in.write_text(f'[runtimes.runc]\ntype = "external"\nbinary = "{shutil.which("runc")}"\n')
        return found


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    entries = [oci_image.directory("/bin"), oci_image.file("/bin/busybox", Path("/bin/busybox"), 0o755)]
    entries += [oci_image.hard_link(f"/bin/{name}", "/bin/busybox") for name in ("sh", "cat", "sleep", "tty")]
    entries += [oci_image.directory("/etc"), oci_image.directory("/data"), oci_image.file("/data/seed", "seed\n")]
    image = oci_image.Image([oci_image.layer(entries)], {"Env": ["PATH=/bin"], "Volumes": {"/data": {}}})
    with (
        LocalRegistry(tmp_path_factory.mktemp("registry") / "data") as registry,
        private_daemon("sampanselinux0", "10.89.81.0/24", World) as daemon,
    ):
        daemon.start_with(image, registry, "demo/image")
        yield daemon


@pytest.fixture
def daemon(shared: World) -> Iterator[World]:
    yield shared
    shared.remove_pods()


def run_pod(daemon: World, name: str, handler: str = "", **security: Any) -> str:
    config = pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name=name, uid="u", namespace="n"),
        linux=pb.LinuxPodSandboxConfig(security_context=pb.LinuxSandboxSecurityContext(**security)),
    )
    request = pb.RunPodSandboxRequest(config=config, runtime_handler=handler)
    return str(daemon.runtime.RunPodSandbox(request).pod_sandbox_id)


def run(daemon: World, pod: str, name: str = "c", mounts: Any = (), **security: Any) -> str:
    more = {"tty": security.pop("tty", False)}
    config = pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name=name),
        image=daemon.image,
        command=["sleep", "1000"],
        mounts=mounts,
        linux=pb.LinuxContainerConfig(security_context=pb.LinuxContainerSecurityContext(**security)),
        **more,
    )
    container = str(
        daemon.runtime.CreateContainer(pb.CreateContainerRequest(pod_sandbox_id=pod, config=config)).container_id
    )
    daemon.runtime.StartContainer(pb.StartContainerRequest(container_id=container))
    return container


def output(daemon: World, container: str, script: str) -> str:
    done = daemon.runtime.ExecSync(pb.ExecSyncRequest(container_id=container, cmd=["sh", "-c", script]))
    return str(done.stdout.decode() + done.stderr.decode())


def pid_of(daemon: World, container: str) -> int:
    request = pb.ContainerStatusRequest(container_id=container, verbose=True)
    return int(json.loads(daemon.runtime.ContainerStatus(request).info["info"])["pid"])


def test_pods_are_kept_apart_and_the_containers_of_one_are_not(
    daemon: World, kernel_log: KernelLog, tmp_path: Path
) -> None:
    for name in ("shared", "plain"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(f"of {name}\n")
    first, second = run_pod(daemon, "p1"), run_pod(daemon, "p2")
    levels = [selinux.level_of(pod) for pod in (first, second)]
    mounts = [
        pb.Mount(container_path="/shared", host_path=str(tmp_path / "shared"), selinux_relabel=True),
        pb.Mount(container_path="/plain", host_path=str(tmp_path / "plain")),
    ]
    one, two = run(daemon, first, "one", mounts), run(daemon, first, "two", mounts)
    mounts[0].selinux_relabel = False
    stranger = run(daemon, second, "stranger", mounts)
    for container, level in ((one, levels[0]), (two, levels[0]), (stranger, levels[1])):
        assert label_of_process(pid_of(daemon, container)) == f"{PROCESS}:{level}"
        assert output(daemon, container, CURRENT) == f"{PROCESS}:{level}\n"
        root = f"/proc/{pid_of(daemon, container)}/root"
        paths = "/ /bin/sh /dev /dev/shm /dev/null /data /data/seed /etc/hosts /etc/resolv.conf".split()
        assert {label_of(f"{root}{path}") for path in paths} == {f"{FILE}:{level}"}
        given = "cat /etc/hosts /etc/hostname > /dev/null && cat /data/seed > /data/copy"
        assert output(daemon, container, given) == ""
        assert "Permission denied" in output(daemon, container, "cat /plain/file")
    assert output(daemon, one, "echo word > /shared/new; echo word > /dev/shm/new") == ""
    assert label_of(tmp_path / "shared/new") == f"{FILE}:{levels[0]}"
    assert output(daemon, two, "cat /shared/new /shared/file /dev/shm/new") == "word\nof shared\nword\n"
    assert output(daemon, stranger, "cat /shared/new") == "cat: can't open '/shared/new': Permission denied\n"
    kernel_log.wait_for(f"scontext={PROCESS}:{levels[1]}", f"tcontext={FILE}:{levels[0]}", "permissive=0")
    assert label_of(tmp_path / "plain/file").endswith(":file_t:s0")


def test_a_privileged_container_is_not_confined(daemon: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("word\n")
    pod = run_pod(daemon, "p1", privileged=True)
    mounts = [pb.Mount(container_path="/volume", host_path=str(tmp_path), selinux_relabel=True)]
    container = run(daemon, pod, "c", mounts, privileged=True)
    assert label_of_process(pid_of(daemon, container)) == UNCONFINED
    assert output(daemon, container, f"{CURRENT}; cat /volume/file") == f"{UNCONFINED}\nword\n"
    assert label_of(tmp_path / "file").endswith(":file_t:s0")


def test_parts_of_a_label_are_the_containers_then_the_pods_then_the_policys(daemon: World) -> None:
    pod = run_pod(daemon, "p1", selinux_options=pb.SELinuxOption(level="s0:c7,c8"))
    for name, given in {"a": {}, "b": {"selinux_options": pb.SELinuxOption(type="container_t")}}.items():
        assert output(daemon, run(daemon, pod, name, **given), CURRENT) == f"{PROCESS}:s0:c7,c8\n"
    own = run(daemon, pod, "c", selinux_options=pb.SELinuxOption(level="s0:c9"), tty=True)
    assert output(daemon, own, CURRENT) == f"{PROCESS}:s0:c9\n"
    root = f"/proc/{pid_of(daemon, own)}/root"
    assert label_of(f"{root}/dev/console") == label_of(f"{root}/bin/sh") == f"{FILE}:s0:c9"
    with pytest.raises(grpc.RpcError) as caught:
        run(daemon, pod, "d", selinux_options=pb.SELinuxOption(type="nonsense_t"))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == (
        "config.linux.security_context.selinux_options: this machine's policy has no label "
        "'system_u:system_r:nonsense_t:s0:c7,c8'"
    )
    listed = daemon.runtime.ListContainers(pb.ListContainersRequest()).containers
    assert sorted(one.metadata.name for one in listed) == ["a", "b", "c"]
    assert len(list((daemon.folder / "state/pods" / pod).glob("*/rootfs"))) == 3


def test_an_image_is_a_volume_under_the_pods_label(daemon: World) -> None:
    mounts = [pb.Mount(container_path="/image", image=daemon.image)]
    container = run(daemon, run_pod(daemon, "p1"), "c", mounts)
    assert output(daemon, container, "cat /image/data/seed") == "seed\n"
    assert "Read-only" in output(daemon, container, "echo > /image/data/seed")


def test_layers_are_for_all_to_read_and_copies_of_them_for_one(daemon: World, tmp_path: Path) -> None:
    found = {label_of(path) for path in (daemon.folder / "root/snapshots").glob("*/fs/bin/busybox")}
    assert found == {"system_u:object_r:container_ro_file_t:s0"}
    (tmp_path / "file").touch()
    copied: Mount = {"type": "bind", "source": str(tmp_path), "options": ["bind", "rw"]}
    assert selinux.labelled([copied], f"{FILE}:{OWN}", str(tmp_path / "empty")) == [copied]
    assert label_of(tmp_path) == label_of(tmp_path / "file") == f"{FILE}:{OWN}"


def test_containers_of_runc_get_the_same_labels(daemon: World) -> None:
    pod = run_pod(daemon, "p1", "runc")
    container = run(daemon, pod)
    level = selinux.level_of(pod)
    assert label_of_process(pid_of(daemon, container)) == f"{PROCESS}:{level}"
    assert output(daemon, container, f"{CURRENT}; cat /data/seed") == f"{PROCESS}:{level}\nseed\n"
