"""Making one container: root file system, config.json, process; undone as a whole when a step fails."""

import json
import os
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sampan.cgroup import mode as cgroup_mode
from sampan.engine import cdi, oci, selinux, volumes
from sampan.engine.model import ContainerRecord, Mount, PodRecord
from sampan.engine.pods import cgroup_path
from sampan.errors import InvalidInput, StageFailed
from sampan.image.user import User, lookup_user
from sampan.linux.resolve import openat2
from sampan.spec.image import ContainerConfig
from sampan.storage import mount as snapshot_mount

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sampan.engine.engine import Engine
    from sampan.engine.images import ResolvedImage


class Creation:
    """One container under way.

    Args:
        engine: Whose.
        pod: Its pod, which is ready.
        record: Its record in state ``creating``.
        name: Its unique name.
    """

    def __init__(self, engine: "Engine", pod: PodRecord, record: ContainerRecord, name: str) -> None:
        self._engine = engine
        self._pod = pod
        self._record = record
        self._name = name
        self._bundle = engine.layout.bundle(pod.id, record.id)
        self._labels = ("", "")

    def run(self) -> ContainerRecord:
        """Make it; the record in state ``created``."""
        engine, pod, record = self._engine, self._pod, self._record
        spec = record.spec
        image = None if spec.rootfs else engine.images.resolve(spec.image_ref or spec.image)
        config = ContainerConfig() if image is None else image.config.config or ContainerConfig()
        record.snapshot_key = record.id
        with ExitStack() as undo:
            engine.container_records.add(record.id, record, name=self._name, snapshots=(record.id,))
            undo.callback(engine.containers.discard, record)
            # Not the pod's folder, which goes with the pod.
            os.mkdir(self._bundle, 0o711)
            os.mkdir(f"{self._bundle}/rootfs", 0o711)
            self._labels = self._chosen_labels()
            self._mount_root(image)
            user = self._user(config)
            record.user = (user.uid, user.gid, user.groups)
            around = self._surroundings(user)
            document = oci.build(spec, pod, config, around)
            own = volumes.declared(config.volumes, (mount.container_path for mount in spec.mounts))
            made = volumes.make(engine.config.root, record.id, pod, f"{self._bundle}/rootfs", own)
            volumes.place(document["mounts"], [*made, *volumes.zone(engine.config.timezone, document["mounts"])])
            self._label(document, around.files)
            cdi.apply(document, cdi.asked_for(spec.cdi_devices, spec.annotations), engine.config.cdi_spec_dirs)
            _write_json(f"{self._bundle}/config.json", document)
            record.cgroup_path = around.cgroup_path
            record.log_path = self._log_path()
            record.pid = engine.monitor(pod.id).create(
                record.id,
                self._bundle,
                tty=spec.tty,
                stdin=spec.stdin,
                stdin_once=spec.stdin_once,
                log_path=record.log_path,
                cgroup=record.cgroup_path,
                systemd=engine.config.cgroup_driver == "systemd",
            )
            record.state = "created"
            if image is not None:
                record.image_id = image.record.id
                record.image_digest = image.target_digest
            with engine.store.transaction():
                engine.container_records.put(record.id, record)
                engine.events.append("created", container_id=record.id, pod_id=pod.id)
            undo.pop_all()
        return record

    def _chosen_labels(self) -> tuple[str, str]:
        """SELinux labels of the process and of its files where there is SELinux, and none where there is not."""
        if not selinux.enabled():
            return "", ""
        security = self._record.spec.security
        wanted = selinux.merged(security.selinux, self._pod.spec.security.selinux)
        return selinux.labels(wanted, privileged=security.privileged, pod_id=self._pod.id)

    def _label(self, document: dict[str, Any], files: str) -> None:
        """Put the labels where they belong: in the configuration, on the volumes that want it, and on our own files."""
        process, label = self._labels
        if not process:
            return
        document["process"]["selinuxLabel"] = process
        document["linux"]["mountLabel"] = label
        for position, mount in enumerate(self._record.spec.mounts):
            if mount.selinux_relabel and mount.host_path:
                selinux.relabel(os.path.realpath(mount.host_path), label, f"mounts[{position}].selinux_relabel")
        ours = (f"{volumes.directory(self._engine.config.root, self._record.id)}/", f"{files}/" if files else "\0")
        for bound in document["mounts"]:
            if bound["type"] == "bind" and bound["source"].startswith(ours):
                selinux.relabel(bound["source"], label)

    def _mount_root(self, image: "ResolvedImage | None") -> None:
        snapshots = self._engine.store.snapshots
        if image is None:
            directory = self._record.spec.rootfs
            if not os.path.isdir(directory):
                raise InvalidInput(f'"{directory}" is not a directory', field="rootfs")
            mounts = snapshots.overlay_on(self._record.id, os.path.abspath(directory))
        else:
            # A container does not outlive a power failure, so that its layer need not: no sync at its end.
            parent = self._engine.images.snapshot_of(image)
            mounts = snapshots.prepare(self._record.id, parent, volatile=True)
        self._attach(mounts, f"{self._bundle}/rootfs")

    def _attach(self, mounts: "Iterable[snapshot_mount.Mount]", target: str) -> None:
        """Mount a snapshot; in a pod with a user namespace the files' owners are seen through its mappings."""
        users = self._pod.namespace_paths.get("user", "")
        idmap = os.open(users, os.O_RDONLY | os.O_CLOEXEC) if users else -1
        try:
            snapshot_mount.attach(selinux.labelled(mounts, self._labels[1], f"{self._bundle}/empty"), target, idmap)
        finally:
            if idmap >= 0:
                os.close(idmap)

    def _user(self, image: ContainerConfig) -> User:
        """The process's user: the request's number or name, else the image's; groups by the request's policy."""
        security = self._record.spec.security
        text = security.username
        if not text and security.user is not None:
            text = str(security.user)
        if not text:
            text = image.user or "0"
        if security.group is not None:
            text = text.partition(":")[0]
        root = os.open(f"{self._bundle}/rootfs", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            user = lookup_user(root, text)
        finally:
            os.close(root)
        if security.group is not None:
            # In place of the user's own; the image's groups that list the user stay.
            user = replace(user, gid=security.group)
        groups = list(security.supplemental_groups)
        if security.supplemental_groups_policy == "merge":
            groups = [*user.groups, *groups]
        # The primary group is a supplementary one too, so that dropping it gains nothing (CVE-2023-25173).
        groups = [user.gid, *groups]
        return User(uid=user.uid, gid=user.gid, groups=tuple(dict.fromkeys(groups)), home=user.home, name=user.name)

    def _surroundings(self, user: User) -> oci.Surroundings:
        engine, pod, record = self._engine, self._pod, self._record
        spec = record.spec
        cgroup_v2 = cgroup_mode() == "v2"
        target = 0
        if spec.namespaces.pid == "target":
            chosen = engine.containers.running(spec.namespaces.target_id)
            if chosen.pod_id != pod.id:
                raise InvalidInput(
                    f"container {chosen.id[:12]} is of another pod",
                    field="namespaces.target_id",
                    hint="name a container of this pod",
                )
            target = chosen.pid
        files = engine.layout.files(pod.id)
        shm = "/dev/shm" if pod.spec.namespaces.ipc == "node" else f"{files}/shm"
        return oci.Surroundings(
            rootfs=f"{self._bundle}/rootfs",
            cgroup_path=cgroup_path(engine.config.cgroup_driver, pod.cgroup_path, record.id),
            files=files,
            shm=shm,
            image_paths=self._image_volumes(),
            namespaces=oci.namespaces_for(spec.namespaces, pod, target_pid=target, cgroup_v2=cgroup_v2),
            user=user,
            handler_annotations=self._annotations(),
            host_devices=engine.config.handlers[pod.handler].privileged_host_devices,
        )

    def _annotations(self) -> dict[str, str]:
        """What other runtimes and their hooks look for (containerd's names), and the pod's allowed annotations."""
        pod, spec = self._pod, self._record.spec
        allowed = self._engine.config.handlers[pod.handler].pod_annotations
        passed = {
            name: value
            for name, value in {**pod.spec.annotations, **spec.annotations}.items()
            if any(name == rule or (rule.endswith("*") and name.startswith(rule[:-1])) for rule in allowed)
        }
        return {
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.container-name": spec.metadata.name,
            "io.kubernetes.cri.image-name": spec.image,
            "io.kubernetes.cri.sandbox-id": pod.id,
            "io.kubernetes.cri.sandbox-name": pod.spec.metadata.name,
            "io.kubernetes.cri.sandbox-namespace": pod.spec.metadata.namespace,
            "io.kubernetes.cri.sandbox-uid": pod.spec.metadata.uid,
            **passed,
        }

    def _image_volumes(self) -> dict[int, str]:
        paths = {}
        for position, mount in enumerate(self._record.spec.mounts):
            if mount.image:
                paths[position] = self._image_volume(position, mount)
        return paths

    def _image_volume(self, position: int, mount: Mount) -> str:
        """Mount an image read-only in the bundle; the path of its wanted folder, which can't be outside of it."""
        field = f"mounts[{position}].image"
        image = self._engine.images.resolve(mount.image)
        target = f"{self._bundle}/image-{position}"
        os.makedirs(target, 0o711)
        view = self._engine.store.snapshots.view(
            f"{self._record.id}-image-{position}", self._engine.images.snapshot_of(image)
        )
        self._attach(view, target)
        if not mount.image_subpath:
            return target
        root = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            folder = openat2(root, mount.image_subpath, os.O_PATH | os.O_DIRECTORY)
            try:
                return os.readlink(f"/proc/self/fd/{folder}")
            finally:
                os.close(folder)
        except OSError as error:
            raise InvalidInput(
                f'"{mount.image_subpath}" in {mount.image}: {error.strerror}', field=f"{field}_sub_path"
            ) from error
        finally:
            os.close(root)

    def _log_path(self) -> str:
        spec, pod = self._record.spec, self._pod.spec
        if not (spec.log_path and pod.log_directory):
            return ""
        path = f"{pod.log_directory.rstrip('/')}/{spec.log_path}"
        try:
            os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        except OSError as error:
            raise StageFailed("make the log directory", error) from error
        return path


def _write_json(path: str, document: object) -> None:
    with open(path, "x", encoding="utf-8") as file:
        file.write(json.dumps(document))  # in C; json.dump() encodes in Python, three milliseconds for a filter
