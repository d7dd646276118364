"""config.json of a container, as far as it follows from the request alone."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from sampan.engine import mounts, oci
from sampan.engine.model import ContainerSpec, Device, Metadata, Mount, Namespaces, PodRecord, PodSpec
from sampan.errors import InvalidInput
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
        host_devices=True,
    )
    record = PodRecord(id="0123456789abcdef", spec=PodSpec(Metadata("p"), **(pod or {})), handler="", created_at=0)
    spec = ContainerSpec(Metadata("c"), command=("true",), **fields)
    return oci.build(spec, record, ContainerConfig(), around)


def container(*devices: Device) -> ContainerSpec:
    return ContainerSpec(Metadata("c"), devices=devices)


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
        (("/sys", "/devices"), [*KERNEL[:4], "/sys", "/devices", *FILES, "/dev/shm"]),
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


@pytest.fixture
def bus(tmp_path: Path) -> Path:
    """A folder as /dev/bus/usb is one, and with all that is none of it."""
    folder = tmp_path / "bus"
    for name in ("001/deep", "pts", ".udev"):
        (folder / name).mkdir(parents=True)
        os.mknod(folder / name / "7", stat.S_IFCHR | 0o640, os.makedev(189, 6))
    os.mknod(folder / "console", stat.S_IFCHR | 0o600, os.makedev(5, 1))
    os.mknod(folder / "disk", stat.S_IFBLK | 0o600, os.makedev(7, 0))
    (folder / "file").touch()
    os.mkfifo(folder / "fifo")
    for name, target in (("dangling", "nowhere"), ("loop", "."), ("null", "/dev/null")):
        (folder / name).symlink_to(target)
    return folder


@pytest.mark.root
@pytest.mark.parametrize("slash", ["", "/"])
def test_a_folder_of_devices_is_given_whole(bus: Path, slash: str) -> None:
    nodes, rules = oci.devices(container(Device(f"{bus}{slash}", f"/dev/b{slash}", "rw")), host_devices=False)
    assert [(node["path"], node["type"], node["major"], node["minor"]) for node in nodes] == [
        ("/dev/b/001/deep/7", "c", 189, 6),
        ("/dev/b/disk", "b", 7, 0),
    ]
    assert rules[-1] == {"allow": True, "type": "b", "major": 7, "minor": 0, "access": "rw"}


@pytest.mark.root
def test_a_folder_that_is_too_large_for_devices_is_refused(bus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oci, "_MOST_ENTRIES", 9)
    with pytest.raises(InvalidInput, match=r"^devices\[0\]\.host_path: .* more than 9 files"):
        oci.devices(container(Device(str(bus), "")), host_devices=False)


def test_nothing_of_the_pods_is_mounted_where_the_machine_would_see_it() -> None:
    pod = [{"destination": path} for path in (*FILES, "/dev/shm")]
    shared = {"destination": "/etc", "options": ["rbind", "rshared"]}
    assert mounts.arranged([], pod, [shared]) == [shared, pod[-1]]
