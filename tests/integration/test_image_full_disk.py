"""A disk that fills up: one clear line, an exit code, nothing half-stored, and what was there untouched."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from image_world import Here
from registry_peers import make_image, noise_image
from sampan.storage.store import Store

pytestmark = pytest.mark.root


class Full(Here):
    """A world whose root is a small file system."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        super().__init__(folder)
        self.disk = folder / "root"
        self.disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}M", "sampan-test", str(self.disk)]
        subprocess.run(mount, check=True)

    def free(self) -> int:
        status = os.statvfs(self.disk)
        return status.f_bavail * status.f_frsize

    def close(self) -> None:
        self.registry.close()
        subprocess.run(["umount", str(self.disk)], check=True)

    def fails(self, *words: str, data: bytes = b"", **env: str) -> None:
        (line,) = [one for one in self.run(*words, code=1, data=data, **env).stderr.decode().splitlines()
                   if one.startswith("sampan: ")]  # fmt: skip
        assert "space" in line

    def stored(self) -> set[str]:
        with Store(str(self.disk)) as store:
            assert os.listdir(f"{self.disk}/content/ingest") in ([], ["lock"]), os.listdir(
                f"{self.disk}/content/ingest"
            )
            rows = {f"image {entry.name}" for entry in store.images("default").list()}
            rows |= {f"blob {blob.digest}" for blob in store.content.walk()}
            known = {os.path.basename(info.directory) for info in store.snapshots.walk()}
            assert set(os.listdir(store.snapshots.root)) == {*known, "lock"}
            return rows | {f"snapshot {info.key}" for info in store.snapshots.walk()}


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Full]:
    made = Full(tmp_path, 8)
    yield made
    made.close()


SMALL = noise_image(1, 100_000, seed="small")


@pytest.mark.parametrize("where", ["blob", "layer"])
def test_a_pull(full: Full, where: str) -> None:
    small = full.put(SMALL, "small")
    full.run("pull", small)
    before = full.stored()
    # Too large as it is, or only when it is unpacked.
    large = noise_image(3, 4_000_000) if where == "blob" else make_image([{"a": b"x"}, {"zeros": bytes(20 << 20)}])
    name = full.put(large, "large")
    full.fails("pull", name)
    assert full.stored() == before
    assert full.free() > 5 << 20
    assert full.out("fsck") == ""
    full.run("pull", full.put(noise_image(2), "fits"))
    # With more space the same pull succeeds.
    subprocess.run(["mount", "-o", "remount,size=64M", str(full.disk)], check=True)
    full.run("pull", name)
    assert full.out("fsck") == ""


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
def test_a_load(full: Full, tmp_path: Path, form: str) -> None:
    small = full.put(SMALL, "small")
    full.run("pull", small)
    before = full.stored()
    name = full.put(noise_image(3, 4_000_000), "large")
    archive = tmp_path / "large.tar"
    full.run("image", "copy", f"docker://{name}", f"{form}:{archive}:large:1")
    full.fails("load", "-i", str(archive))
    assert full.stored() == before
    assert full.free() > 5 << 20
    full.fails("load", data=archive.read_bytes())
    assert full.stored() == before
    full.fails("image", "copy", f"{form}:{archive}", "store:large")
    assert full.stored() == before
    assert full.out("fsck") == ""


@pytest.mark.parametrize("way", ["save", "oci:", "oci-archive:", "docker-archive:", "dir:"])
def test_a_save(full: Full, tmp_path: Path, way: str) -> None:
    subprocess.run(["mount", "-o", "remount,size=64M", str(full.disk)], check=True)
    name = full.put(noise_image(3, 4_000_000), "large")
    full.run("pull", name)
    target = tmp_path / "target"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5M", "sampan-test", str(target)], check=True)
    try:
        (target / "there").write_text("before")
        if way == "save":
            full.fails("save", "-o", f"{target}/image.tar", name)
        else:
            full.fails("image", "copy", f"store:{name}", f"{way}{target}/image")
        assert (target / "there").read_text() == "before"
        left = {path.name for path in target.iterdir()} - {"there"}
        # A directory keeps the whole blobs that came, for the next attempt; it has no image.
        assert left == ({"image"} if way in ("oci:", "dir:") else set())
        assert not (target / "image/index.json").exists()
        assert not (target / "image/manifest.json").exists()
        assert not list(target.rglob(".*"))
    finally:
        subprocess.run(["umount", str(target)], check=True)
    assert full.out("fsck") == ""


def test_no_room_for_what_is_kept_for_a_moment(full: Full, tmp_path: Path) -> None:
    name = full.put(noise_image(1, 4_000_000), "large")
    target = tmp_path / "target"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "sampan-test", str(target)], check=True)
    try:
        full.fails("image", "copy", f"docker://{name}", f"docker://{full.host}/copy:1", TMPDIR=str(target))
        assert list(target.iterdir()) == []
    finally:
        subprocess.run(["umount", str(target)], check=True)
    assert "copy" not in full.out("registry", "repositories", full.host)
