"""What containers are given over CRI: image volumes, CDI devices, a time zone, limits; and why they ended."""

import json
import os
import shlex
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import oci_image
import pytest
from cri_daemon import Daemon, private_daemon
from local_registry import LocalRegistry
from stream_client import Refused, Remote

from sampan.cri import api_pb2 as pb
from sampan.engine import selinux
from sampan.errors import StageFailed
from sampan.network.state import State

pytestmark = pytest.mark.root

APPLETS = ("sh", "cat", "ls", "sleep", "head", "tail", "tr", "date", "id", "env", "stat", "readlink", "touch", "test")


class World(Daemon):
    """A daemon with an image that declares volumes, CDI specifications and a time zone."""

    settings = ""
    hidden: Path

    def command(self) -> list[str]:
        """With the settings that the tests look at."""
        found = super().command()
        drop_in = self.folder / "conf.d" / "more.toml"
        drop_in.parent.mkdir(exist_ok=True)
        drop_in.write_text(
            f'[cri]\ncdi_spec_dirs = ["{self.folder}/cdi"]\ntimezone = "Asia/Tokyo"\n'
            'pinned_images = ["*/demo/volumes:*"]\n'
            f'stream_tls_cert = "{self.folder}/cert.pem"\nstream_tls_key = "{self.folder}/key.pem"\n'
            '[runtimes.sampan]\npod_annotations = ["hooks.example/*"]\n'
            f'[runtimes.runc]\ntype = "external"\nbinary = "{shutil.which("runc")}"\n'
        )
        return found


def image(hidden: Path) -> oci_image.Image:
    """Volumes that are plain, that are links out of the image, and that hold such links (CVE-2022-23648)."""
    entries = [oci_image.directory("/bin"), oci_image.file("/bin/busybox", Path("/bin/busybox"), 0o755)]
    entries += [oci_image.hard_link(f"/bin/{name}", "/bin/busybox") for name in APPLETS]
    entries += [
        *(oci_image.directory(path) for path in ("/etc", "/data", "/data/deep")),
        oci_image.file("/data/deep/seed", "of the image\n", 0o640),
        oci_image.symlink("/data/secret", f"{hidden}/file"),
        oci_image.symlink("/link", str(hidden)),
        oci_image.symlink("/climb", "../" * 12 + str(hidden).lstrip("/")),
    ]
    volumes: dict[str, dict[str, str]] = {path: {} for path in ("/data", "/link", "/climb", "/new/one", "/taken")}
    return oci_image.Image([oci_image.layer(entries)], {"Env": ["PATH=/bin"], "Volumes": volumes})


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with (
        LocalRegistry(tmp_path_factory.mktemp("registry") / "data") as registry,
        private_daemon("sampancri9", "10.89.91.0/24", World) as daemon,
    ):
        daemon.hidden = daemon.folder / "hidden"
        daemon.hidden.mkdir()
        (daemon.hidden / "file").write_text("secret\n")
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
        command += ["-keyout", str(daemon.folder / "key.pem"), "-out", str(daemon.folder / "cert.pem")]
        subprocess.run(command, check=True, capture_output=True)
        daemon.start_with(image(daemon.hidden), registry, "demo/volumes")
        yield daemon


@pytest.fixture
def daemon(shared: World) -> Iterator[World]:
    yield shared
    shared.remove_pods()
    assert not list(shared.folder.glob("root/volumes/*"))


def run_pod(daemon: World, name: str = "p", **more: Any) -> str:
    config = pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name=name, uid="u", namespace="n"), **more)
    return str(daemon.runtime.RunPodSandbox(pb.RunPodSandboxRequest(config=config)).pod_sandbox_id)


def create(daemon: World, pod: str, command: str = "sleep 1000", name: str = "c", **more: Any) -> str:
    config = pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name=name), image=daemon.image, command=["sh", "-c", command], **more
    )
    request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=config)
    return str(daemon.runtime.CreateContainer(request).container_id)


def run(daemon: World, pod: str, command: str = "sleep 1000", name: str = "c", **more: Any) -> str:
    container = create(daemon, pod, command, name, **more)
    daemon.runtime.StartContainer(pb.StartContainerRequest(container_id=container))
    return container


def output(daemon: World, container: str, command: str) -> str:
    request = pb.ExecSyncRequest(container_id=container, cmd=["sh", "-c", command])
    done = daemon.runtime.ExecSync(request)
    return str(done.stdout.decode() + done.stderr.decode())


@pytest.fixture
def pulled(daemon: World) -> Iterator[Callable[[oci_image.Image, str], pb.ImageSpec]]:
    """Has the daemon pull an image of a name, which goes after the test."""
    found: list[pb.ImageSpec] = []

    def pull(made: oci_image.Image, name: str) -> pb.ImageSpec:
        host = daemon.image.image.partition("/")[0]
        oci_image.push(made, f"http://{host}", f"demo/{name}", "1")
        found.append(pb.ImageSpec(image=f"{host}/demo/{name}:1"))
        daemon.images.PullImage(pb.PullImageRequest(image=found[-1]))
        return found[-1]

    yield pull
    daemon.remove_pods()
    for image in found:
        daemon.images.RemoveImage(pb.RemoveImageRequest(image=image))


def ended(daemon: World, container: str) -> pb.ContainerStatus:
    """Its status once that it has ended."""
    deadline = time.monotonic() + 60
    request = pb.ContainerStatusRequest(container_id=container)
    while (found := daemon.runtime.ContainerStatus(request).status).state != pb.CONTAINER_EXITED:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    status: pb.ContainerStatus = found
    return status


@pytest.mark.parametrize("users", [False, True], ids=["plain", "user-namespace"])
def test_volumes_of_the_image_are_copied_up_and_lead_nowhere_else(daemon: World, users: bool) -> None:
    mapping = [pb.IDMapping(host_id=1 << 20, container_id=0, length=65536)]
    options = pb.NamespaceOption()
    if users:
        options.userns_options.CopyFrom(pb.UserNamespace(mode=pb.POD, uids=mapping, gids=mapping))
    context = pb.LinuxSandboxSecurityContext(namespace_options=options)
    pod = run_pod(daemon, linux=pb.LinuxPodSandboxConfig(security_context=context))
    linux = pb.LinuxContainerConfig(
        security_context=pb.LinuxContainerSecurityContext(readonly_rootfs=True, namespace_options=options)
    )
    taken = daemon.folder / f"taken-{users}"
    taken.mkdir(mode=0o777)
    mounts = [pb.Mount(container_path="/taken", host_path=str(taken))]
    if users:
        mounts[0].uidMappings.extend(mapping)
        mounts[0].gidMappings.extend(mapping)
    container = run(daemon, pod, linux=linux, mounts=mounts)
    assert output(daemon, container, "cat /data/deep/seed; stat -c '%a %u:%g' /data/deep/seed") == (
        "of the image\n640 0:0\n"
    )
    # The root is read-only, the volumes are not; what the request mounts itself is no volume.
    assert output(daemon, container, "touch /x; touch /data/y /new/one/y /taken/y; ls /new/one") == (
        "y\ntouch: /x: Read-only file system\n"
    )
    assert (taken / "y").exists()
    # Neither the volumes that are links nor the link in a volume hold what is on the machine.
    assert output(daemon, container, "ls /link/ /climb/ 2>&1 | tr -d '\\n'; readlink /data/secret") == (
        f"/climb/:/link/:{daemon.hidden}/file\n"
    )
    assert "No such file" in output(daemon, container, "cat /data/secret")
    assert output(daemon, container, "cat /link/file /climb/file /data/secret 2>/dev/null") == ""
    held = Path(daemon.folder / "root" / "volumes" / container)
    assert not [
        path
        for path in held.rglob("*")
        if path.is_file() and not path.is_symlink() and path.read_bytes() == b"secret\n"
    ]


@pytest.mark.parametrize("told", [False, True], ids=["without mappings", "with mappings"])
@pytest.mark.parametrize("layers", [1, 3])
def test_an_image_as_a_volume_in_a_user_namespace_has_its_owners(
    daemon: World, pulled: Callable[[oci_image.Image, str], pb.ImageSpec], layers: int, told: bool
) -> None:
    made = oci_image.Image(
        [oci_image.layer([oci_image.file(f"/part{number}", f"{number}\n")]) for number in range(layers)], {}
    )
    volume = pulled(made, f"parts{layers}")
    mapping = [pb.IDMapping(host_id=1 << 20, container_id=0, length=65536)]
    options = pb.NamespaceOption(userns_options=pb.UserNamespace(mode=pb.POD, uids=mapping, gids=mapping))
    pod = run_pod(
        daemon,
        linux=pb.LinuxPodSandboxConfig(
            security_context=pb.LinuxSandboxSecurityContext(namespace_options=options), cgroup_parent=""
        ),
    )
    mount = pb.Mount(container_path="/image", image=volume, readonly=True)
    if told:
        mount.uidMappings.extend(mapping)
        mount.gidMappings.extend(mapping)
    linux = pb.LinuxContainerConfig(security_context=pb.LinuxContainerSecurityContext(namespace_options=options))
    container = run(daemon, pod, linux=linux, mounts=[mount])
    parts = " ".join(f"/image/part{number}" for number in range(layers))
    assert output(daemon, container, f"stat -c '%u:%g' {parts}") == "0:0\n" * layers
    assert output(daemon, container, f"cat {parts}") == "".join(f"{number}\n" for number in range(layers))


@pytest.mark.parametrize("user", [0, 1000])
@pytest.mark.parametrize("handler", ["", "runc"])
def test_a_program_in_a_user_namespace_opens_its_streams_anew(daemon: World, handler: str, user: int) -> None:
    """As servers do whose log is a link to /dev/stdout."""
    mapping = [pb.IDMapping(host_id=1 << 20, container_id=0, length=65536)]
    options = pb.NamespaceOption(userns_options=pb.UserNamespace(mode=pb.POD, uids=mapping, gids=mapping))
    context = pb.LinuxSandboxSecurityContext(namespace_options=options)
    config = pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name="p", uid="u", namespace="n"),
        log_directory=str(daemon.folder / f"logs-{handler}-{user}"),
        linux=pb.LinuxPodSandboxConfig(security_context=context),
    )
    request = pb.RunPodSandboxRequest(config=config, runtime_handler=handler)
    pod = daemon.runtime.RunPodSandbox(request).pod_sandbox_id
    security = pb.LinuxContainerSecurityContext(namespace_options=options, run_as_user=pb.Int64Value(value=user))
    command = "cat > /dev/stderr; echo said > /dev/stdout; exec sleep 1000"
    linux = pb.LinuxContainerConfig(security_context=security)
    container = run(daemon, pod, command, linux=linux, log_path="log", stdin=False)
    deadline = time.monotonic() + 20
    log = Path(config.log_directory) / "log"
    while "stdout F said\n" not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    assert output(daemon, container, "echo one > /dev/stdout; echo two > /dev/stderr") == "one\ntwo\n"


@pytest.mark.parametrize("who", ["1000", ""])
def test_a_user_by_number_is_that_number_whatever_the_image_says(
    daemon: World, pulled: Callable[[oci_image.Image, str], pb.ImageSpec], who: str
) -> None:
    """An image may name root "1000", and whoever checks for a user that is not root sees 1000."""
    entries = [oci_image.directory("/bin"), oci_image.file("/bin/busybox", Path("/bin/busybox"), 0o755)]
    entries += [oci_image.hard_link(f"/bin/{applet}", "/bin/busybox") for applet in ("sh", "sleep", "id")]
    entries += [
        oci_image.directory("/etc"),
        oci_image.file("/etc/passwd", "1000:x:0:0::/:/bin/sh\none:x:1000:1001::/home/one:/bin/sh\n"),
        oci_image.file("/etc/group", "3000:x:0:\nextra:x:50000:one\n"),
    ]
    made = oci_image.Image([oci_image.layer(entries)], {"Env": ["PATH=/bin"], "User": "1000"})
    image = pulled(made, "numbers")
    assert daemon.images.ImageStatus(pb.ImageStatusRequest(image=image)).image.uid.value == 1000
    security = pb.LinuxContainerSecurityContext(supplemental_groups=[4000])
    if who:
        security.run_as_user.value = int(who)
        security.run_as_group.value = 3000
    config = pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name="c"), image=image, command=["sleep", "1000"],
        linux=pb.LinuxContainerConfig(security_context=security),
    )  # fmt: skip
    request = pb.CreateContainerRequest(pod_sandbox_id=run_pod(daemon), config=config)
    container = str(daemon.runtime.CreateContainer(request).container_id)
    daemon.runtime.StartContainer(pb.StartContainerRequest(container_id=container))
    # The image's groups of the user stay when the request names the first one.
    group = "3000" if who else "1001"
    assert output(daemon, container, "echo $(id -u) $(id -g) $(id -G)") == f"1000 {group} {group} 4000 50000\n"


def test_an_image_stays_for_who_runs_it_when_its_tag_moves_on(
    daemon: World, pulled: Callable[[oci_image.Image, str], pb.ImageSpec]
) -> None:
    def made(text: str) -> oci_image.Image:
        entries = [oci_image.directory("/bin"), oci_image.file("/bin/sleep", Path("/bin/busybox"), 0o755)]
        return oci_image.Image([oci_image.layer([*entries, oci_image.file("/text", text)])], {"Env": ["PATH=/bin"]})

    def status(container: str) -> pb.ContainerStatus:
        found: pb.ContainerStatus = daemon.runtime.ContainerStatus(
            pb.ContainerStatusRequest(container_id=container)
        ).status
        return found

    image = pulled(made("old"), "moving")
    old = daemon.images.ImageStatus(pb.ImageStatusRequest(image=image)).image
    config = pb.ContainerConfig(metadata=pb.ContainerMetadata(name="c"), image=image, command=["sleep", "1000"])
    request = pb.CreateContainerRequest(pod_sandbox_id=run_pod(daemon), config=config)
    container = str(daemon.runtime.CreateContainer(request).container_id)
    before = status(container)
    assert before.image_ref == old.repo_digests[0]
    new = daemon.images.ImageStatus(pb.ImageStatusRequest(image=pulled(made("new"), "moving"))).image
    assert new.id != old.id
    kept = daemon.images.ImageStatus(pb.ImageStatusRequest(image=pb.ImageSpec(image=old.id))).image
    assert (list(kept.repo_tags), kept.repo_digests) == ([], old.repo_digests)
    assert status(container).image_ref == before.image_ref
    daemon.images.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image=old.id)))
    listed = {each.id for each in daemon.images.ListImages(pb.ListImagesRequest()).images}
    assert new.id in listed
    assert old.id not in listed


@pytest.mark.parametrize("handler", ["", "runc"])
def test_a_program_that_cant_be_run_is_told_of_in_the_status(daemon: World, tmp_path: Path, handler: str) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    config = pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="p", uid="u", namespace="n"))
    request = pb.RunPodSandboxRequest(config=config, runtime_handler=handler)
    pod = daemon.runtime.RunPodSandbox(request).pod_sandbox_id
    wanted = pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name="c"), image=daemon.image, command=["/script"],
        mounts=[pb.Mount(container_path="/script", host_path=str(script))],
    )  # fmt: skip
    made = pb.CreateContainerRequest(pod_sandbox_id=pod, config=wanted)
    container = daemon.runtime.CreateContainer(made).container_id
    start = pb.StartContainerRequest(container_id=container)
    if handler:  # runc lets the program's failure be its end
        daemon.runtime.StartContainer(start)
        assert ended(daemon, container).exit_code != 0
        return
    with pytest.raises(grpc.RpcError) as caught:
        daemon.runtime.StartContainer(start)
    status = daemon.runtime.ContainerStatus(pb.ContainerStatusRequest(container_id=container)).status
    assert (status.state, status.exit_code, status.reason) == (pb.CONTAINER_EXITED, 128, "StartError")
    assert status.message == caught.value.details()
    assert "/script" in status.message
    assert status.started_at == 0
    assert status.finished_at >= status.created_at > 0


@pytest.mark.parametrize("name", ["SIGRTMAX-3", "SIGNONE"])
def test_the_stop_signal_of_an_image(
    daemon: World, pulled: Callable[[oci_image.Image, str], pb.ImageSpec], name: str
) -> None:
    """One that signal(7) doesn't know keeps no container from being stopped."""
    entries = [oci_image.directory("/bin"), oci_image.file("/bin/busybox", Path("/bin/busybox"), 0o755)]
    entries += [oci_image.hard_link(f"/bin/{applet}", "/bin/busybox") for applet in ("sh", "sleep")]
    made = oci_image.Image([oci_image.layer(entries)], {"Env": ["PATH=/bin"], "StopSignal": name})
    image = pulled(made, name.lower())
    number = 61 if name == "SIGRTMAX-3" else 15
    command = f"trap 'exit 7' {number}; while :; do sleep 0.1; done"
    config = pb.ContainerConfig(metadata=pb.ContainerMetadata(name="c"), image=image, command=["sh", "-c", command])
    request = pb.CreateContainerRequest(pod_sandbox_id=run_pod(daemon), config=config)
    container = str(daemon.runtime.CreateContainer(request).container_id)
    daemon.runtime.StartContainer(pb.StartContainerRequest(container_id=container))
    time.sleep(0.5)
    # A grace period may be longer than what poll(2) waits for.
    daemon.runtime.StopContainer(pb.StopContainerRequest(container_id=container, timeout=1 << 40))
    assert ended(daemon, container).exit_code == 7


def test_cdi_devices_are_given_whole(daemon: World) -> None:
    (daemon.folder / "cdi").mkdir()
    edits = {
        "env": ["GPU=there"],
        "deviceNodes": [{"path": "/dev/gpu0", "hostPath": "/dev/zero", "permissions": "r"}],
        "mounts": [{"hostPath": str(daemon.hidden), "containerPath": "/opt/driver"}],
        "hooks": [
            {
                "hookName": "createRuntime",
                "path": "/bin/sh",
                "args": ["sh", "-c", f"cat > {shlex.quote(str(daemon.folder))}/hooked"],
            }
        ],
    }
    document = {
        "cdiVersion": "0.6.0",
        "kind": "vendor.example/gpu",
        "devices": [{"name": "0", "containerEdits": edits}],
    }
    (daemon.folder / "cdi" / "gpu.json").write_text(json.dumps(document))
    pod = run_pod(daemon, annotations={"hooks.example/a": "b", "other.example/a": "secret"})
    container = run(daemon, pod, CDI_devices=[pb.CDIDevice(name="vendor.example/gpu=0")])
    assert output(daemon, container, "env | tr '\\n' ' '").count("GPU=there") == 1
    assert output(daemon, container, "head -c 3 /dev/gpu0 | tr '\\0' z; cat /opt/driver/file") == "zzzsecret\n"
    # The hook ran, and was told of the annotations that the handler's list allows, and of no other.
    state = json.loads((daemon.folder / "hooked").read_text())
    assert state["id"] == container
    assert state["annotations"]["hooks.example/a"] == "b"
    assert "other.example/a" not in state["annotations"]
    with pytest.raises(grpc.RpcError) as caught:
        run(daemon, pod, name="d", CDI_devices=[pb.CDIDevice(name="vendor.example/gpu=9")])
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == 'CDI_devices[0]: no CDI specification describes "vendor.example/gpu=9"'
    assert [c.id for c in daemon.runtime.ListContainers(pb.ListContainersRequest()).containers] == [container]


def test_the_time_zone_is_the_one_that_is_configured(daemon: World) -> None:
    pod = run_pod(daemon)
    assert output(daemon, run(daemon, pod), "date -d @0 '+%H %Z'") == "09 JST\n"
    own = daemon.folder / "UTC"
    own.write_bytes(Path("/usr/share/zoneinfo/UTC").read_bytes())
    mounts = [pb.Mount(container_path="/etc/localtime", host_path=str(own))]
    assert output(daemon, run(daemon, pod, name="d", mounts=mounts), "date -d @0 '+%H %Z'") == "00 UTC\n"


def test_labels_have_no_effect_where_there_is_no_selinux(daemon: World) -> None:
    if os.path.isdir("/sys/fs/selinux/booleans"):
        pytest.skip("SELinux runs here")
    options = pb.SELinuxOption(type="container_t", level="s0:c1,c2")
    security = pb.LinuxContainerSecurityContext(selinux_options=options)
    container = run(daemon, run_pod(daemon), linux=pb.LinuxContainerConfig(security_context=security))
    assert output(daemon, container, "id -u") == "0\n"


def test_a_volumes_files_get_a_label_and_what_links_lead_to_does_not(tmp_path: Path) -> None:
    volume, outside = tmp_path / "volume", tmp_path / "outside"
    (volume / "deep" / "er").mkdir(parents=True)
    outside.mkdir()
    files = [volume / "file", volume / "deep" / "er" / "file"]
    for file in (*files, outside / "file"):
        file.touch()
    (volume / "link").symlink_to(outside / "file")
    (volume / "folder").symlink_to(outside)
    label = "system_u:object_r:container_file_t:s0:c1,c2"

    def label_of(path: Path) -> str:
        try:
            return os.getxattr(path, "security.selinux", follow_symlinks=False).rstrip(b"\0").decode()
        except OSError:
            return ""

    before = label_of(outside), label_of(outside / "file")
    try:
        selinux.relabel(str(volume), label)
    except StageFailed as error:
        pytest.skip(str(error))
    labelled = [volume, volume / "deep", volume / "deep" / "er", volume / "link", volume / "folder", *files]
    assert {label_of(path) for path in labelled} == {label}
    assert (label_of(outside), label_of(outside / "file")) == before
    changed = os.stat(files[0]).st_ctime_ns
    selinux.relabel(str(volume), label)
    assert os.stat(files[0]).st_ctime_ns == changed
    selinux.relabel(str(files[0]), label.replace("c1", "c0"))
    assert label_of(files[0]).endswith("s0:c0,c2")


def test_a_pinned_image_is_told_to_be(daemon: World) -> None:
    (found,) = daemon.images.ListImages(pb.ListImagesRequest()).images
    assert found.pinned
    assert daemon.images.ImageStatus(pb.ImageStatusRequest(image=daemon.image)).image.pinned


def test_garbage_collection_takes_images_that_are_neither_used_nor_pinned(daemon: World) -> None:
    host = daemon.image.image.partition("/")[0]
    for name in ("spare", "used"):
        plain = oci_image.Image([oci_image.layer([oci_image.file("/name", name)])], {"Cmd": ["/name"]})
        oci_image.push(plain, f"http://{host}", f"demo/{name}", "1")
        daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=f"{host}/demo/{name}:1")))
    run(
        daemon,
        run_pod(daemon),
        mounts=[pb.Mount(container_path="/image", image=pb.ImageSpec(image=f"{host}/demo/used:1"))],
    )
    program = str(Path(sys.executable).with_name("sampan"))
    command = [program, "--config", str(daemon.folder / "config.toml"), "-n", "k8s.io", "gc", "--images"]

    def collect(*options: str) -> list[str]:
        done = subprocess.run([*command, *options], check=True, capture_output=True, text=True)
        return [line for line in done.stdout.splitlines() if line.startswith("image ")]

    assert collect("--dry-run") == collect() == [f"image {host}/demo/spare:1"]
    listed = daemon.images.ListImages(pb.ListImagesRequest()).images
    assert {tag for each in listed for tag in each.repo_tags} == {
        f"{host}/demo/{name}:1" for name in ("volumes", "used")
    }
    assert collect() == []
    daemon.remove_pods()
    assert collect() == [f"image {host}/demo/used:1"]


@pytest.mark.parametrize("websocket", [False, True], ids=["spdy", "websocket"])
def test_streams_are_had_once_over_tls(daemon: World, websocket: bool) -> None:
    container = run(daemon, run_pod(daemon))
    request = pb.ExecRequest(container_id=container, cmd=["sh", "-c", "head -c 5"], stdin=True, stdout=True)
    url = daemon.runtime.Exec(request).url
    assert url.startswith("https://127.0.0.1:")
    context = ssl.create_default_context(cafile=str(daemon.folder / "cert.pem"))
    client = Remote(url, "stdin stdout", protocol="v5.channel.k8s.io", websocket=websocket, context=context)
    client.send("stdin", b"hello")
    assert client.outcome()["status"] == "Success"
    assert bytes(client.received["stdout"]) == b"hello"
    with pytest.raises(Refused):
        Remote(url, "stdin stdout", protocol="v5.channel.k8s.io", websocket=websocket, context=context)
    with pytest.raises((Refused, OSError)):
        Remote(daemon.runtime.Exec(request).url, "stdin stdout", websocket=websocket)


def test_a_pods_memory_limit_under_usage_is_refused(daemon: World) -> None:
    pod = run_pod(daemon)
    hog = "x=$(head -c 30000000 /dev/zero | tr '\\0' a); touch /data/ready; sleep 1000; test -n \"$x\""
    container = run(daemon, pod, hog)
    output(daemon, container, "until test -e /data/ready; do :; done")
    wanted = pb.LinuxContainerResources(memory_limit_in_bytes=16 << 20)
    with pytest.raises(grpc.RpcError) as caught:
        daemon.runtime.UpdatePodSandboxResources(
            pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod, resources=wanted)
        )
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith("resources.memory_limit_in_bytes: 16777216 is less than the ")
    wanted = pb.LinuxContainerResources(memory_limit_in_bytes=256 << 20)
    daemon.runtime.UpdatePodSandboxResources(pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod, resources=wanted))


def test_running_out_of_memory_is_told_each_time(daemon: World) -> None:
    pod = run_pod(daemon)
    limits = pb.LinuxContainerConfig(
        resources=pb.LinuxContainerResources(memory_limit_in_bytes=16 << 20, memory_swap_limit_in_bytes=16 << 20)
    )
    reasons = []
    for number in range(20):
        # The shell itself is killed, or a child of it whose death the shell outlives for a moment.
        hog = "x=$(head -c 60000000 /dev/zero | tr '\\0' a); exit 1" if number % 2 else "tail /dev/zero; exit 137"
        container = run(daemon, pod, hog, f"hog{number}", linux=limits)
        status = ended(daemon, container)
        reasons.append((status.reason, status.exit_code))
    assert reasons == [("OOMKilled", 137)] * 20


@pytest.mark.parametrize("limit", [200 << 10, 1 << 10])
def test_a_memory_limit_that_is_too_low_to_start_with_is_told(daemon: World, limit: int) -> None:
    linux = pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(memory_limit_in_bytes=limit))
    pod = run_pod(daemon)
    with pytest.raises(grpc.RpcError) as caught:
        run(daemon, pod, linux=linux)
    assert "the memory limit is too low" in caught.value.details()


@pytest.mark.parametrize("users", [False, True], ids=["plain", "user-namespace"])
def test_sysctls_of_an_interface_are_set_once_it_is_there(daemon: World, users: bool) -> None:
    options = pb.NamespaceOption()
    if users:
        mapping = [pb.IDMapping(host_id=1 << 20, container_id=0, length=65536)]
        options.userns_options.CopyFrom(pb.UserNamespace(mode=pb.POD, uids=mapping, gids=mapping))
    context = pb.LinuxSandboxSecurityContext(namespace_options=options)

    def run_with(sysctls: dict[str, str]) -> str:
        return run_pod(daemon, linux=pb.LinuxPodSandboxConfig(sysctls=sysctls, security_context=context))

    wanted = {
        "net.ipv4.conf.eth0.arp_ignore": "1",
        "net/ipv4/conf/eth0/arp_announce": "2",
        "net.ipv4.neigh.eth0.gc_stale_time": "61",
        "net.ipv4.conf.lo.arp_filter": "1",
        "net.ipv4.tcp_fin_timeout": "77",
    }
    linux = pb.LinuxContainerConfig(security_context=pb.LinuxContainerSecurityContext(namespace_options=options))
    container = run(daemon, run_with(wanted), linux=linux)
    files = " ".join("/proc/sys/" + name.replace(".", "/") for name in wanted)
    assert output(daemon, container, f"cat {files}").split() == list(wanted.values())
    daemon.remove_pods()
    for name, value, part in (
        ("net.ipv4.conf.eth7.arp_ignore", "1", "no such interface"),
        ("net.ipv4.conf.eth0.arp_ignore", "many", "arp_ignore"),
        ("net.ipv4.tcp_fin_timeout", "soon", "linux.sysctl"),
        ("net.ipv4.there_is_none", "1", "no such parameter"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            run_with({name: value})
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert name in caught.value.details()
        assert part in caught.value.details()
        assert not daemon.runtime.ListPodSandbox(pb.ListPodSandboxRequest()).items
        assert not list(daemon.folder.glob("state/ns/*"))
        state = State(f"{daemon.folder}/root/network")
        assert not state.attached()
        state.close()


def test_as_many_annotations_as_kubernetes_allows_and_those_of_a_kubelet(daemon: World) -> None:
    most = {"user.example/most": "x" * ((256 << 10) - 17)}
    own = {"kubernetes.io/config.seen": "2026-01-01T00:00:00Z", "kubernetes.io/config.source": "api"}
    container = run(daemon, run_pod(daemon, annotations={**most, **own}), annotations={**most, **own})
    status = daemon.runtime.ContainerStatus(pb.ContainerStatusRequest(container_id=container)).status
    assert status.annotations == {**most, **own}
    with pytest.raises(grpc.RpcError) as caught:
        run_pod(daemon, "more", annotations={"user.example/more": "x" * (1 << 20)})
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_paths_in_a_container_may_climb_as_far_as_its_root(daemon: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    mount = pb.Mount(host_path=str(tmp_path), container_path="/data/../../../over")
    container = run(daemon, run_pod(daemon), mounts=[mount], working_dir="/data/deep/../../over/.")
    assert output(daemon, container, "readlink /proc/self/cwd; cat /over/file") == "/over\nhere"


def test_annotations_and_sysctls_inject_nothing(daemon: World) -> None:
    """CVE-2022-0811: what is written into a value is never more than a value."""
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    for sysctls in (
        {"kernel.shm_rmid_forced": "1+kernel.core_pattern=|/bin/evil"},
        {"kernel.shm_rmid_forced": "1\nkernel.core_pattern=|/bin/evil"},
        {"kernel/../kernel/core_pattern": "|/bin/evil"},
        {"kernel.core_pattern": "|/bin/evil"},
        {"kernel.shm_rmid_forced=1 kernel.core_pattern": "|/bin/evil"},
    ):
        with pytest.raises(grpc.RpcError) as caught:
            run_pod(daemon, linux=pb.LinuxPodSandboxConfig(sysctls=sysctls))
        assert caught.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL)
        assert len(caught.value.details().splitlines()) == 1
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before
    assert not daemon.runtime.ListPodSandbox(pb.ListPodSandboxRequest()).items
    pod = run_pod(daemon, annotations={"hooks.example/x": 'a"},"process":{"args":["evil"]},"x":{"y":"'})
    request = pb.ContainerStatusRequest(container_id=run(daemon, pod), verbose=True)
    process = json.loads(daemon.runtime.ContainerStatus(request).info["info"])["runtimeSpec"]["process"]
    assert process["args"] == ["sh", "-c", "sleep 1000"]
