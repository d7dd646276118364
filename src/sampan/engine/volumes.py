"""Volumes that an image declares (``VOLUME``): a folder of the container's own, with what the image has at its place.

The image is nobody's friend: its links lead nowhere outside of it (CVE-2022-23648), and a copy is made by descriptor
and name alone.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from sampan.engine.model import PodRecord
from sampan.engine.mounts import normalized
from sampan.errors import InvalidInput, StageFailed
from sampan.linux import tree
from sampan.linux.resolve import openat2
from sampan.runtime.copy_up import copy_tree

#: An image that declares more is up to no good.
_MOST = 256
_ZONES = "/usr/share/zoneinfo"


def declared(volumes: Iterable[str] | None, taken: Iterable[str]) -> list[str]:
    """Paths of an image's volumes, less those where the request mounts something itself; all begin at its root.

    Raises:
        InvalidInput: A path is none, or there are too many.
    """
    occupied = set(map(normalized, taken))
    found = []
    for path in volumes or ():
        if "\0" in path:
            raise InvalidInput(f"the image's volume {path[:100]!r} holds a NUL byte", field="image")
        clean = normalized(path)
        if clean != "/" and clean not in occupied and clean not in found:
            found.append(clean)
    if len(found) > _MOST:
        raise InvalidInput(f"the image declares {len(found)} volumes, more than {_MOST}", field="image")
    return found


def directory(root: str, container_id: str) -> str:
    """Where a container's volumes are; they go with the container."""
    return f"{root}/volumes/{container_id}"


def make(root: str, container_id: str, pod: PodRecord, rootfs: str, paths: list[str]) -> list[dict[str, Any]]:
    """Make the volumes, and fill them from the image; their mounts, for config.json.

    Args:
        root: The engine's root.
        container_id: Whose.
        pod: Its pod.
        rootfs: The container's mounted root file system.
        paths: Where in it.
    """
    if not paths:
        return []
    mounts = []
    image = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.makedirs(f"{root}/volumes", 0o711, exist_ok=True)
        os.mkdir(directory(root, container_id), 0o711)
        for number, path in enumerate(paths):
            source = f"{directory(root, container_id)}/{number}"
            _make(source, image, path, pod)
            options = ["rbind", "rprivate", "rw"]
            mounts.append({"destination": path, "type": "bind", "source": source, "options": options})
    except OSError as error:
        raise StageFailed("make the image's volumes", error) from error
    finally:
        os.close(image)
    return mounts


def _make(target: str, image: int, path: str, pod: PodRecord) -> None:
    os.mkdir(target, 0o755)
    for owner, mappings in enumerate((pod.spec.namespaces.uid_mappings, pod.spec.namespaces.gid_mappings)):
        if mappings:
            os.chown(target, *((mappings[0].host_id, -1) if owner == 0 else (-1, mappings[0].host_id)))
    try:
        # Links are followed within the image, as the container's own processes would.
        source = openat2(image, path.lstrip("/"), os.O_PATH | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        place = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            copy_tree(source, place)
        finally:
            os.close(place)
    finally:
        os.close(source)


def place(mounts: list[dict[str, Any]], volumes: list[dict[str, Any]]) -> None:
    """Put the volumes among a container's mounts, each before what is mounted in it."""
    for volume in volumes:
        below = f"{volume['destination']}/"
        inside = (number for number, mount in enumerate(mounts) if f"{mount['destination']}/".startswith(below))
        mounts.insert(next(inside, len(mounts)), volume)


def zone_file(name: str) -> str:
    """The file of a time zone (``Local``: the machine's); empty if there is none of that name."""
    path = "/etc/localtime" if name == "Local" else f"{_ZONES}/{name}"
    bad = name.startswith("/") or ".." in name.split("/") or "\0" in name
    return "" if bad or not os.path.isfile(path) else os.path.realpath(path)


def zone(name: str, mounts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The mount that gives a container its time zone (localtime(5)), unless something is mounted there already."""
    source = zone_file(name) if name else ""
    if not source or any(mount["destination"].rstrip("/") in ("/etc", "/etc/localtime") for mount in mounts):
        return []
    options = ["rbind", "rprivate", "ro"]
    return [{"destination": "/etc/localtime", "type": "bind", "source": source, "options": options}]


def remove(root: str, container_id: str) -> None:
    """Remove a container's volumes, however deep it nested what is in them; none is no error."""
    with suppress(OSError):
        tree.remove(directory(root, container_id))
