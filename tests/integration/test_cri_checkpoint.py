"""CheckpointContainer: the archive, what is said where criu can't, and that the container runs on."""

import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cri_daemon import Daemon, busybox_daemon

from sampan.cri import api_pb2 as pb

pytestmark = pytest.mark.root

RUNC = shutil.which("runc", path="/usr/sbin:/usr/bin:/usr/local/sbin") or ""
#: A runtime whose checkpoints need no criu: it writes what it was told. All else is runc's.
WRAPPER = """#!/bin/sh
images=
for word in "$@"; do
    [ "$before" = --image-path ] && images=$word
    [ "$before" = --work-path ] && work=$word
    [ "$word" = checkpoint ] && verb=1
    before=$word
done
if [ -n "$verb" ]; then
    [ -e {folder}/fail ] && echo "the dump failed: some reason" >&2 && exit 1
    [ -e {folder}/hang ] && sleep 1000
    echo "$@" > "$images/inventory.img"
    echo log > "$work/dump.log"
    exit 0
fi
exec {runc} "$@"
"""


def _wrap(daemon: Daemon) -> None:
    daemon.wrap_runtime(WRAPPER.format(folder=daemon.folder, runc=RUNC))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    if not RUNC or shutil.which("criu") is None:
        pytest.skip("there is no runc, or no criu")
    folder = tmp_path_factory.mktemp("registry") / "data"
    with busybox_daemon(Daemon, folder, "sampancri5", "10.89.77.0/24", _wrap) as made:
        yield made


def run(daemon: Daemon, handler: str) -> str:
    daemon.remove_pods()
    metadata = pb.PodSandboxMetadata(name=f"p-{handler}", uid="u", namespace="n")
    request = pb.RunPodSandboxRequest(config=pb.PodSandboxConfig(metadata=metadata), runtime_handler=handler)
    pod = daemon.runtime.RunPodSandbox(request).pod_sandbox_id
    config = pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name="c"),
        image=daemon.image,
        linux=pb.LinuxContainerConfig(
            security_context=pb.LinuxContainerSecurityContext(namespace_options=pb.NamespaceOption(pid=pb.CONTAINER))
        ),
        command=["sh", "-c", "echo new > /made; rm /bin/vi; exec sleep 1000"],
    )
    container = daemon.runtime.CreateContainer(
        pb.CreateContainerRequest(pod_sandbox_id=pod, config=config)
    ).container_id
    daemon.runtime.StartContainer(pb.StartContainerRequest(container_id=container))
    until_made = ["sh", "-c", "while [ -e /bin/vi ]; do :; done"]
    daemon.runtime.ExecSync(pb.ExecSyncRequest(container_id=container, cmd=until_made))
    return str(container)


def checkpoint(daemon: Daemon, container: str, location: Path | str, timeout: int = 0) -> None:
    daemon.runtime.CheckpointContainer(
        pb.CheckpointContainerRequest(container_id=container, location=str(location), timeout=timeout)
    )


def runs_on(daemon: Daemon, container: str) -> None:
    status = daemon.runtime.ContainerStatus(pb.ContainerStatusRequest(container_id=container)).status
    assert status.state == pb.CONTAINER_RUNNING


def test_an_archive_has_what_a_restore_needs(daemon: Daemon, tmp_path: Path) -> None:
    container = run(daemon, "wrapped")
    location = tmp_path / "checkpoint.tar"
    checkpoint(daemon, container, location)
    runs_on(daemon, container)
    assert location.stat().st_mode & 0o777 == 0o600
    with tarfile.open(location) as archive:
        texts = {member.name: archive.extractfile(member) for member in archive if member.isreg()}
        read = {name: file.read() for name, file in texts.items() if file is not None}
    assert b"--leave-running" in read["checkpoint/inventory.img"]
    assert read["dump.log"] == b"log\n"
    config, spec = json.loads(read["config.dump"]), json.loads(read["spec.dump"])
    assert (config["id"], config["name"], config["runtime"]) == (container, "c", "wrapped")
    assert spec["process"]["args"][:2] == ["sh", "-c"]
    assert json.loads(read["deleted.files"]) == ["/bin/vi"]
    (tmp_path / "diff.tar").write_bytes(read["rootfs-diff.tar"])
    with tarfile.open(tmp_path / "diff.tar") as layer:
        made = layer.extractfile("made")
        assert made is not None
        assert made.read() == b"new\n"
    assert list((daemon.folder / "root" / "checkpoints").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


@pytest.mark.parametrize(
    ("trouble", "code", "text"),
    [
        ("fail", grpc.StatusCode.INTERNAL, "checkpoint: the dump failed: some reason"),
        ("hang", grpc.StatusCode.DEADLINE_EXCEEDED, "has not ended after 1 s and was killed"),
    ],
)
def test_a_failure_leaves_nothing(
    daemon: Daemon, tmp_path: Path, trouble: str, code: grpc.StatusCode, text: str
) -> None:
    container = run(daemon, "wrapped")
    (daemon.folder / trouble).touch()
    with pytest.raises(grpc.RpcError) as caught:
        checkpoint(daemon, container, tmp_path / "checkpoint.tar", timeout=1 if trouble == "hang" else 0)
    (daemon.folder / trouble).unlink()
    assert caught.value.code() is code
    assert text in caught.value.details()
    runs_on(daemon, container)
    assert list(tmp_path.iterdir()) == []
    assert list((daemon.folder / "root" / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("location", ["", "relative", "/a/../b", "/no/such/folder/file", "/tmp"])
def test_a_location_that_is_none(daemon: Daemon, location: str) -> None:
    container = run(daemon, "wrapped")
    with pytest.raises(grpc.RpcError) as caught:
        checkpoint(daemon, container, location)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith("location: ")


def test_our_own_runtime_writes_one_or_names_criu(daemon: Daemon, tmp_path: Path) -> None:
    container = run(daemon, "sampan")
    location = tmp_path / "checkpoint.tar"
    try:
        checkpoint(daemon, container, location)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED, error.details()  # noqa: PT017 - what it is depends on criu
        assert "criu" in error.details()  # noqa: PT017
        assert list(tmp_path.iterdir()) == []
    else:
        with tarfile.open(location) as archive:
            names = set(archive.getnames())
        assert {"checkpoint/inventory.img", "checkpoint/pstree.img", "spec.dump", "config.dump"} <= names
    runs_on(daemon, container)
