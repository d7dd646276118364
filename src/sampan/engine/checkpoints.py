"""A container's checkpoint: criu's files and what else a restore needs, in one archive of the form that CRI-O writes.

    checkpoint/        criu's image files
    config.dump        what the container is: id, name, image, times
    spec.dump          its config.json
    rootfs-diff.tar    files that it changed or added
    deleted.files      those of the image that it deleted, a JSON list
    dump.log           what criu said

The runtime does the work, by the command line that all of them have; ours is `sampan-runtime`. The container runs on.
"""

import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sampan.engine.config import HandlerConfig
from sampan.engine.model import ContainerRecord
from sampan.errors import InvalidInput, SampanError, StageFailed, TimedOut, Unsupported

if TYPE_CHECKING:
    from sampan.engine.engine import Engine

#: Seconds for a checkpoint whose caller gives no time.
_PATIENCE = 300.0
#: Bytes of a runtime's complaint that are looked at.
_COMPLAINT = 1 << 16
#: What a runtime says that can't, as opposed to one that failed.
_CANNOT = ("criu does not work", "needs criu", "need criu", "not supported", "not implemented", "can't be carried")


def checkpoint(engine: "Engine", record: ContainerRecord, location: str, timeout: float) -> None:
    """Write the checkpoint of a running container to the file ``location``: all of it, or nothing.

    Raises:
        InvalidInput: The location can't be written to.
        Unsupported: There is no criu, or none that works here.
        TimedOut: It took longer than ``timeout`` seconds.
        SampanError: The runtime refused; with its reason.
    """
    folder = os.path.dirname(location)
    if not os.path.isdir(folder) or os.path.isdir(location):
        raise InvalidInput(f'"{location}" is not a file in a directory that is there', field="location")
    if shutil.which("criu") is None:
        raise Unsupported("checkpoint: criu is not installed", hint="install criu")
    work = f"{engine.config.root}/checkpoints"
    os.makedirs(work, 0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work, prefix=f"{record.id[:12]}-") as images:
        os.mkdir(f"{images}/checkpoint", 0o700)
        command = _command(engine, record, f"{images}/checkpoint", images)
        _run(command, timeout or _PATIENCE)
        _write(engine, record, images, location)


def _command(engine: "Engine", record: ContainerRecord, images: str, work: str) -> list[str]:
    name = engine.pods.get(record.pod_id).handler
    config = engine.config.handlers.get(name, HandlerConfig())
    root = config.root or engine.layout.runtime(name)
    program = [config.binary] if config.type == "external" else [_own_runtime()]
    systemd = ["--systemd-cgroup"] if engine.config.cgroup_driver == "systemd" else []
    options = ["--image-path", images, "--work-path", work, "--leave-running", "--file-locks"]
    # The pod's network is another's to restore.
    return [
        *program,
        "--root",
        root,
        *systemd,
        *config.options,
        "checkpoint",
        *options,
        "--empty-ns",
        "network",
        record.id,
    ]


def _own_runtime() -> str:
    beside = os.path.join(os.path.dirname(sys.executable), "sampan-runtime")
    found = beside if os.access(beside, os.X_OK) else shutil.which("sampan-runtime")
    if not found:
        raise Unsupported("checkpoint: sampan-runtime is not installed beside sampan", hint="install it")
    return found


def _run(command: list[str], timeout: float) -> None:
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
    except OSError as error:
        raise StageFailed("run runtime", error, path=command[0]) from error
    try:
        _, said = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise TimedOut(f"checkpoint: the runtime has not ended after {timeout:g} s and was killed") from None
    if process.returncode != 0:
        lines = said[-_COMPLAINT:].decode("utf-8", "replace").strip().splitlines()
        reason = f"checkpoint: {' '.join(lines[-1].split())[:500] if lines else f'exit status {process.returncode}'}"
        if any(words in reason for words in _CANNOT):
            raise Unsupported(reason, hint="a runtime makes checkpoints by criu: `criu check` says what it can do here")
        raise SampanError(reason)


def _write(engine: "Engine", record: ContainerRecord, images: str, location: str) -> None:
    """Put the archive together beside its place, and move it there."""
    bundle = engine.layout.bundle(record.pod_id, record.id)
    temporary = f"{location}.{os.getpid()}.tmp"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            archive.add(f"{images}/checkpoint", "checkpoint")
            if os.path.exists(f"{images}/dump.log"):
                archive.add(f"{images}/dump.log", "dump.log")
            archive.add(f"{bundle}/config.json", "spec.dump")
            _add_text(archive, "config.dump", _config(engine, record))
            deleted = _add_changes(engine, record, archive, images)
            _add_text(archive, "deleted.files", deleted)
        os.rename(temporary, location)
    except OSError as error:
        raise StageFailed("write the checkpoint", error, path=location) from error
    finally:
        if os.path.lexists(temporary):
            os.unlink(temporary)


def _add_text(archive: tarfile.TarFile, name: str, document: Any) -> None:
    text = json.dumps(document).encode()
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(text), 0o600
    archive.addfile(member, io.BytesIO(text))


def _config(engine: "Engine", record: ContainerRecord) -> dict[str, Any]:
    """The keys are those of checkpointctl's ContainerConfig, by which tools read archives."""
    return {
        "id": record.id,
        "name": record.spec.metadata.name,
        "rootfsImage": record.spec.image,
        "rootfsImageRef": record.image_id,
        "rootfsImageName": record.spec.image,
        "runtime": engine.pods.get(record.pod_id).handler,
        "createdTime": datetime.fromtimestamp(record.created_at / 1e9, UTC).isoformat(),
        "checkpointedTime": datetime.now(UTC).isoformat(),
        "restored": False,
    }


def _add_changes(engine: "Engine", record: ContainerRecord, archive: tarfile.TarFile, images: str) -> list[str]:
    """Add the writable layer; the paths that it deletes. Of copied layers nobody knows what has changed."""
    options = [option for mount in engine.store.snapshots.mounts(record.snapshot_key) for option in mount["options"]]
    upper = next((option.removeprefix("upperdir=") for option in options if option.startswith("upperdir=")), "")
    if not upper:
        return []
    deleted = []
    path = f"{images}/rootfs-diff.tar"
    with tarfile.open(path, mode="w", format=tarfile.PAX_FORMAT) as layer:
        for name in _walk(upper):
            status = os.lstat(f"{upper}/{name}")
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                deleted.append(f"/{name}")  # overlayfs's mark of what is deleted
            elif not stat.S_ISSOCK(status.st_mode):
                layer.add(f"{upper}/{name}", name, recursive=False)
    archive.add(path, "rootfs-diff.tar")
    return deleted


def _walk(root: str) -> Iterator[str]:
    """Paths below ``root``, parents first; links are not followed."""
    for folder, directories, files in os.walk(root):
        for name in sorted([*directories, *files]):
            yield os.path.relpath(os.path.join(folder, name), root)
