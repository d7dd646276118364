"""Checking a store, byte by byte, and repairing just what is damaged.

A blob is damaged if its file is gone or its bytes have another digest. An unpacked layer is damaged if it is not what
its blob, applied again, gives. A damaged blob is removed and fetched again, alone; a damaged layer is replaced by the
one just applied, unless a container has its root on it: the kernel does not allow an overlay's lower layers to change.
"""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from sampan.errors import Corrupt, NotFound, SampanError
from sampan.image.apply import NeedsParent
from sampan.spec.image import Descriptor, ImageConfig, Index, Manifest, chain_ids, decode_config, decode_manifest
from sampan.storage.unpack import Unpacker, nursery

if TYPE_CHECKING:
    from sampan.storage.store import Store
    from sampan.storage.worker import Launch

#: Gets a blob into the store again; told the image names that lead to it.
Fetch = Callable[[Descriptor, list[str]], None]
_CHUNK = 1 << 20
#: What is not committed and has a layer below it, however far; but not the directory that is to take the layer's place.
_USERS = """
WITH RECURSIVE above (key) AS (VALUES (?1) UNION SELECT s.key FROM snapshots s JOIN above ON s.parent = above.key)
SELECT key FROM snapshots WHERE key IN above AND kind <> 'committed' AND directory <> ?2 ORDER BY key
"""


@dataclass(slots=True)
class Problem:
    """Something that is not as it should be.

    Attributes:
        kind: Of what.
        name: Digest or snapshot key.
        what: The fault, in a line.
        images: ``namespace/name`` of the images that need it.
        repaired: Whether it has been put right.
    """

    kind: Literal["content", "layer"]
    name: str
    what: str
    images: list[str] = field(default_factory=list)
    repaired: bool = False


@dataclass(slots=True)
class _Needs:
    """What images need, as far as their manifests can be read."""

    blobs: dict[str, Descriptor] = field(default_factory=dict)
    images: dict[str, list[str]] = field(default_factory=dict)
    #: Chain id -> image's config, its layers, and which of them.
    layers: dict[str, tuple[ImageConfig, tuple[Descriptor, ...], int]] = field(default_factory=dict)


def check(
    store: "Store", *, repair: bool = False, fetch: Fetch | None = None, launch: "Launch | None" = None
) -> list[Problem]:
    """Check every blob and every unpacked layer.

    Args:
        store: The store.
        repair: Put right what can be.
        fetch: Gets a damaged blob again; without it a damaged blob is only removed, so that the next pull gets it.
        launch: Starts workers, in place of a nursery.
    """
    with nursery() as own:
        return _check(store, repair, fetch, launch or own.launch)


def _check(store: "Store", repair: bool, fetch: Fetch | None, launch: "Launch") -> list[Problem]:
    problems = []
    needs = _needs(store)
    for problem in _damaged_blobs(store, needs):
        problems.append(problem)
        if repair:
            _repair_blob(store, problem, needs, fetch)
    # A manifest that was fetched again may lead further.
    needs = _needs(store)
    problems += _missing_blobs(store, needs, {p.name for p in problems}, fetch if repair else None)
    for info in store.snapshots.walk():
        if info.kind == "committed" and info.key in needs.layers:
            config, layers, number = needs.layers[info.key]
            with Unpacker(store, config, layers, launch=launch) as unpacker:
                fault = _layer_fault(store, unpacker, info.key, number, repair=repair)
            if fault is not None:
                fault.images = needs.images.get(info.key, [])
                problems.append(fault)
    return problems


# ------------------------------------------------------------------ blobs


def _damaged_blobs(store: "Store", needs: _Needs) -> Iterator[Problem]:
    for info in store.content.walk():
        try:
            with store.content.reader(info.digest) as reader:
                for _ in reader.chunks():
                    pass
        except (Corrupt, OSError) as error:
            yield Problem("content", info.digest, str(error), needs.images.get(info.digest, []))
        except NotFound:
            continue  # collected meanwhile


def _missing_blobs(store: "Store", needs: _Needs, known: set[str], fetch: Fetch | None) -> list[Problem]:
    problems = []
    for digest, descriptor in needs.blobs.items():
        if digest not in known and not store.content.exists(digest):
            problem = Problem("content", digest, f"content {digest}: is missing", needs.images.get(digest, []))
            if fetch is not None:
                _fetch(store, problem, descriptor, fetch)
            problems.append(problem)
    return problems


def _repair_blob(store: "Store", problem: Problem, needs: _Needs, fetch: Fetch | None) -> None:
    descriptor = needs.blobs.get(problem.name)
    store.content.delete(problem.name)
    if descriptor is None:
        problem.repaired = True  # nothing needs it
    elif fetch is not None:
        _fetch(store, problem, descriptor, fetch)


def _fetch(store: "Store", problem: Problem, descriptor: Descriptor, fetch: Fetch) -> None:
    """Get a blob again; that it can't be had is part of the problem, and no reason to leave others unchecked."""
    try:
        fetch(descriptor, problem.images)
    except SampanError as error:
        problem.what += f"; {error}"
    problem.repaired = store.content.exists(problem.name)


def _needs(store: "Store") -> _Needs:
    needs = _Needs()
    for namespace in store.namespaces():
        for entry in store.images(namespace).list():
            _add(store, needs, entry.target, f"{namespace}/{entry.name}", whole=True)
    return needs


def _add(store: "Store", needs: _Needs, target: Descriptor, image: str, *, whole: bool) -> None:
    if not whole and not store.content.exists(target.digest):
        return  # a platform that was not pulled
    _need(needs, target.digest, image)
    needs.blobs[target.digest] = target
    try:
        document = decode_manifest(store.content.read(target), target.media_type)
        if isinstance(document, Index):
            for child in document.manifests:
                _add(store, needs, child, image, whole=False)
            return
        for below in (document.config, *document.layers):
            needs.blobs[below.digest] = below
            _need(needs, below.digest, image)
        _add_layers(needs, decode_config(store.content.read(document.config)), document, image)
    except (SampanError, OSError):
        return  # damaged: reported as the blob that it is


def _add_layers(needs: _Needs, config: ImageConfig, manifest: Manifest, image: str) -> None:
    if len(manifest.layers) == len(config.rootfs.diff_ids):
        for number, name in enumerate(chain_ids(config.rootfs.diff_ids)):
            needs.layers[name] = (config, manifest.layers, number)
            _need(needs, name, image)


def _need(needs: _Needs, name: str, image: str) -> None:
    images = needs.images.setdefault(name, [])
    if image not in images:
        images.append(image)


# ------------------------------------------------------------------ layers


def _layer_fault(store: "Store", unpacker: Unpacker, key: str, number: int, *, repair: bool) -> Problem | None:
    info = store.snapshots.stat(key)
    try:
        fresh = unpacker.apply_again(number)
        what = _difference(os.path.join(info.directory, "fs"), os.path.join(fresh, "fs"))
    except (NeedsParent, NotFound, Corrupt):
        # It can't be compared: it depends on its parents' files, or its blob is what is damaged.
        what = "" if os.path.isdir(os.path.join(info.directory, "fs")) else "its directory is gone"
        fresh = ""
    if not what:
        return None
    problem = Problem("layer", key, f"layer {key}: {what}")
    if repair and fresh:
        users = _replace(store, key, fresh)
        problem.repaired = not users
        if users:
            problem.what += f"; not replaced while it is in use: remove {', '.join(users)}, and repair again"
    return problem


def _replace(store: "Store", key: str, fresh: str) -> list[str]:
    """Let a committed snapshot have another directory's files, unless something is mounted on it.

    Returns:
        Snapshots that may be mounted on it, most often a container's, named like it; then nothing was changed.
    """
    store.snapshots.sync()
    new = os.path.basename(fresh)
    with store.transaction(durable=True) as connection:
        # Who prepares a snapshot on it from now on waits for this transaction, and gets the new directory.
        users = [row[0] for row in connection.execute(_USERS, (key, new))]
        if users:
            return users
        old = connection.execute("SELECT directory FROM snapshots WHERE key=?", (key,)).fetchone()[0]
        connection.execute("DELETE FROM snapshots WHERE directory=?", (new,))
        connection.execute("UPDATE snapshots SET directory=? WHERE key=?", (new, key))
    shutil.rmtree(os.path.join(store.snapshots.root, old), ignore_errors=True)
    return []


def _difference(stored: str, fresh: str, inner: str = "") -> str:
    """The first difference between two trees, as a clause; empty if there is none."""
    try:
        names, expected = (sorted(os.listdir(os.path.join(root, inner))) for root in (stored, fresh))
    except OSError as error:
        return f'"/{inner}" can\'t be read: {error.strerror}'
    if names != expected:
        odd = min(set(names) ^ set(expected))
        return f'"/{os.path.join(inner, odd)}" {"is missing" if odd in expected else "should not be there"}'
    for name in names:
        path = os.path.join(inner, name)
        fault = _one_difference(os.path.join(stored, path), os.path.join(fresh, path))
        if fault:
            return f'"/{path}" {fault}'
        if stat.S_ISDIR(os.lstat(os.path.join(fresh, path)).st_mode):
            fault = _difference(stored, fresh, path)
            if fault:
                return fault
    return ""


def _one_difference(stored: str, fresh: str) -> str:
    found, expected = os.lstat(stored), os.lstat(fresh)
    if (found.st_mode, found.st_uid, found.st_gid, found.st_rdev) != (
        expected.st_mode,
        expected.st_uid,
        expected.st_gid,
        expected.st_rdev,
    ):
        return "has another type, mode or owner"
    if _attributes(stored) != _attributes(fresh):
        return "has other extended attributes"
    if stat.S_ISDIR(expected.st_mode):
        return ""
    if (found.st_size, found.st_mtime_ns) != (expected.st_size, expected.st_mtime_ns):
        return "has another size or time"
    if stat.S_ISLNK(expected.st_mode):
        return "" if os.readlink(stored) == os.readlink(fresh) else "leads elsewhere"
    if stat.S_ISREG(expected.st_mode) and not _same_content(stored, fresh):
        return "has other content"
    return ""


def _attributes(path: str) -> dict[str, bytes]:
    """Extended attributes but overlayfs's own, which depend on the layers below."""
    names = (name for name in os.listxattr(path, follow_symlinks=False) if ".overlay." not in name)
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}


def _same_content(one: str, two: str) -> bool:
    with open(one, "rb") as first, open(two, "rb") as second:
        while True:
            piece = first.read(_CHUNK)
            if piece != second.read(_CHUNK):
                return False
            if not piece:
                return True
