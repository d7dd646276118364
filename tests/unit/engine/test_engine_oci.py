"""config.json of a container, as far as it follows from the request alone."""

import os
from pathlib import Path
from typing import Any

import pytest

from sampan.engine import mounts, oci
from sampan.engine.model import ContainerSpec, Metadata, Mount, Namespaces, PodRecord, PodSpec
from sampan.image.user import User
from sampan.spec.image import ContainerConfig


def document(tmp_path: Path, pod: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    for name in ("hosts", "hostname", "resolv.conf"):
        (tmp_path / name).touch()
    around = oci.Surroundings(
        rootfs="/rootfs",
        cgroup_path="/c",
        files=str(tmp_path),
        shm="/pods/shm",
        image_paths={},
        namespaces={"mount": ""},
        user=User(uid=0, gid=0, groups=(), home="/", name=""),
        handler_annotations={},
        cgroup_v2=False,
        unset_seccomp="default",
    )
    record = PodRecord(id="0123456789abcdef", spec=PodSpec(Metadata("p"), **(pod or {})), handler="", created_at=0)
    spec = ContainerSpec(Metadata("c"), command=("true",), **fields)
    return oci.build(spec, record, ContainerConfig(), around)


def destinations(document: dict[str, Any]) -> list[str]:
    return [mount["destination"] for mount in document["mounts"]]


def volumes(tmp_path: Path, *paths: str) -> tuple[Mount, ...]:
    return tuple(Mount(path, str(tmp_path)) for path in paths)


KERNEL = ["/proc", "/dev", "/dev/pts", "/dev/mqueue", "/sys", "/sys/fs/cgroup"]
FILES = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ((), [*KERNEL, *FILES, "/dev/shm"]),
        (("/a/b", "/etc"), [*KERNEL, "/etc", "/a/b", *FILES, "/dev/shm"]),
        (("/etc/", "/etc/hosts"), [*KERNEL, "/etc/", "/etc/hosts", *FILES[1:], "/dev/shm"]),
        (("/etc/./hosts",), [*KERNEL, "/etc/./hosts", *FILES[1:], "/dev/shm"]),
        (("/dev",), ["/proc", "/sys", "/sys/fs/cgroup", "/dev", *FILES, "/dev/shm"]),
        (("/sys/fs/cgroup",), [*KERNEL[:-1], *FILES, "/dev/shm", "/sys/fs/cgroup"]),
        (("/dev/shm/x", "/dev/shm"), [*KERNEL, "/dev/shm", *FILES, "/dev/shm/x"]),
    ],
)
def test_a_volume_hides_nothing_that_lies_in_it(tmp_path: Path, paths: tuple[str, ...], expected: list[str]) -> None:
    assert destinations(document(tmp_path, mounts=volumes(tmp_path, *paths))) == expected


@pytest.mark.parametrize(
    ("pod", "name"),
    [
        ({"hostname": "web"}, "web"),
        ({}, "0123456789ab"),
        ({"namespaces": Namespaces(network="node")}, os.uname().nodename),
    ],
)
def test_the_host_name_is_in_the_environment(tmp_path: Path, pod: dict[str, Any], name: str) -> None:
    assert f"HOSTNAME={name}" in document(tmp_path, pod)["process"]["env"]


def test_nothing_of_the_pods_is_mounted_where_the_machine_would_see_it() -> None:
    pod = [{"destination": path} for path in (*FILES, "/dev/shm")]
    shared = {"destination": "/etc", "options": ["rbind", "rshared"]}
    assert mounts.arranged([], pod, [shared]) == [shared, pod[-1]]
