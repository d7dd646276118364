"""The `sampan` command on images, content and registries, as a person uses it; a registry of our own beside."""

from __future__ import annotations

import json
import os
import pty
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from image_world import Here
from registry_peers import Image, make_image, make_index, noise_image
from sampan.spec.image import MT_DOCKER_LIST, MT_DOCKER_MANIFEST, MT_OCI_EMPTY, MT_OCI_MANIFEST, describe

pytestmark = pytest.mark.root

AMD = make_image([{"a": b"amd"}], config={"Entrypoint": ["/init"], "Cmd": ["-a"]})
ARM = make_image([{"a": b"arm"}], architecture="arm64", config={"Cmd": ["/b", "c"]})


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    made = Here(tmp_path)
    yield made
    made.registry.close()


# ------------------------------------------------------------------ fsck


@pytest.mark.parametrize("part", ["manifest", "config", "layer"])
def test_fsck_fetches_just_what_is_damaged(here: Here, part: str) -> None:
    image = noise_image(3)
    name = here.put(image, "team/app")
    here.run("pull", name)
    assert image.config
    digest = {"manifest": image.target, "config": image.config, "layer": image.layers[1]}[part].digest
    with here.store() as store:
        path = store.content.path(digest)
        data = bytearray(Path(path).read_bytes())
        data[len(data) // 2] ^= 1
        os.chmod(path, 0o600)
        Path(path).write_bytes(data)
    assert f"content {digest}: " in here.out("fsck", code=1)
    here.registry.requests.clear()
    told = here.out("fsck", "--repair")
    assert digest in told
    assert "(repaired" in told
    assert [path for _, path, _ in here.registry.requests] == [
        f"/v2/team/app/{'manifests' if part == 'manifest' else 'blobs'}/{digest}"
    ]
    assert here.out("fsck") == ""


def test_fsck_says_what_it_can_not_repair_and_checks_the_rest(here: Here) -> None:
    image = noise_image(3)
    here.run("pull", here.put(image, "team/app"))
    with here.store() as store:
        for layer in image.layers[:2]:
            os.truncate(store.content.path(layer.digest), 10)
    here.registry.close()
    lines = here.out("fsck", "--repair", code=1).splitlines()
    assert len([line for line in lines if "(damaged; needed by default/" in line and here.host in line]) == 2
    assert len([line for line in here.out("fsck", code=1).splitlines() if "is missing" in line]) == 2


def test_fsck_applies_just_the_damaged_layer_again(here: Here) -> None:
    here.run("pull", here.put(noise_image(3), "team/app"))
    with here.store() as store:
        info = store.snapshots.walk()[1]
        before = [one.directory for one in store.snapshots.walk()]
    os.setxattr(f"{info.directory}/fs/noise1", "user.odd", b"x")
    here.registry.requests.clear()
    assert f"layer {info.key}: " in here.out("fsck", "--repair")
    assert here.registry.requests == []
    with here.store() as store:
        after = [one.directory for one in store.snapshots.walk()]
    assert [one == two for one, two in zip(before, after, strict=True)] == [True, False, True]
    assert here.out("fsck") == ""


# ------------------------------------------------------------------ content


def test_content_is_listed_shown_labelled_edited_and_removed(here: Here, tmp_path: Path) -> None:
    name = here.put(AMD, "a")
    here.run("pull", name)
    assert AMD.config
    digest = AMD.config.digest
    assert set(here.out("content", "ls", "-q").split()) == set(AMD.blobs)
    assert here.run("content", "get", digest).stdout == AMD.blobs[digest]
    assert here.json("content", "info", digest)["size"] == AMD.config.size
    assert here.out("content", "label", digest, "note=x").splitlines()[-1] == "note=x"
    assert "note" not in here.out("content", "label", digest, "note=")

    edited = here.out("content", "edit", digest, EDITOR="sed -i s,/init,/other,").strip()
    assert json.loads(here.out("content", "get", edited))["config"]["Entrypoint"] == ["/other"]
    # An edited manifest becomes what a name leads to, and the new image is whole.
    manifest = AMD.target.digest
    size = here.json("content", "info", edited)["size"]
    swap = f'sed -i -e s/{digest}/{edited}/ -e \'s/"size": {AMD.config.size}/"size": {size}/\''
    made = here.out("content", "edit", "--name", "mine:1", manifest, VISUAL="", EDITOR=swap).strip()
    assert here.json("image", "inspect", "mine:1")["digest"] == made
    assert json.loads(here.out("image", "inspect", "--config", "mine:1"))["config"]["Entrypoint"] == ["/other"]
    here.run("gc")
    assert edited in here.out("content", "ls", "-q")

    # What is no manifest any more is refused, and so is an editor that fails.
    assert b"manifest: Expected" in here.run("content", "edit", manifest, EDITOR="sed -i s/{//", code=1).stderr
    assert b"ended with status 1" in here.run("content", "edit", manifest, EDITOR="false", code=2).stderr
    assert b"nosuch" in here.run("content", "edit", manifest, EDITOR="nosuch", code=1).stderr
    assert b"neither a manifest" in here.run("content", "edit", "--name", "x", digest, EDITOR="true", code=2).stderr
    here.run("content", "rm", edited)
    assert b"not in the store" in here.run("content", "get", edited, code=1).stderr


def test_gc_tells_before_it_removes_and_why_it_keeps(here: Here) -> None:
    name = here.put(AMD, "a")
    here.run("pull", name)
    with here.store() as store:
        loose = store.content.put(b"loose").digest
        [snapshot] = store.snapshots.walk()
    assert here.out("gc", "--dry-run").split() == [loose]
    assert loose in here.out("content", "ls", "-q")
    for kept in (AMD.layers[0].digest, snapshot.key):
        assert f'image "{name}" in namespace default' in here.out("gc", "--explain", kept)
    assert here.out("gc").split() == [loose]
    assert loose not in here.out("content", "ls", "-q")


# ------------------------------------------------------------------ image inspect


def test_every_platform_of_an_index_is_shown_with_what_it_runs(here: Here) -> None:
    index = make_index({"linux/amd64": AMD, "linux/arm64": ARM})
    name = here.put(index, "both")
    expected = [
        {"os": "linux", "architecture": "amd64", "variant": "", "digest": AMD.target.digest,
         "media_type": MT_OCI_MANIFEST, "entrypoint": ["/init"], "command": ["-a"], "missing": ""},
        {"os": "linux", "architecture": "arm64", "variant": "", "digest": ARM.target.digest,
         "media_type": MT_OCI_MANIFEST, "entrypoint": None, "command": ["/b", "c"], "missing": ""},
    ]  # fmt: skip
    layout = f"oci:{here.folder}/layout:x"
    assert here.out("image", "copy", "-q", "--all", f"docker://{name}", layout).strip() == index.target.digest
    here.run("image", "copy", f"docker://{name}", "store:all")
    for place in (f"docker://{name}", layout, "store:all", "all"):
        shown = here.json("image", "inspect", place)
        assert shown["digest"] == index.target.digest
        listed = shown["platforms"]
        assert isinstance(listed, list)
        assert all(one.pop("size") > 100 for one in listed)
        assert listed == expected
    # Of a pulled image the other platforms are known by the index alone.
    here.run("rmi", "all")
    here.run("pull", here.put(index, "half"))
    shown = here.json("image", "inspect", f"{here.host}/half:1")
    assert isinstance(shown["platforms"], list)
    assert [one["entrypoint"] for one in shown["platforms"]] == [["/init"], None]
    assert ARM.target.digest in shown["platforms"][1]["missing"]

    assert here.run("image", "inspect", "--raw", f"{here.host}/half:1").stdout == index.blobs[index.target.digest]
    chosen = here.run("image", "inspect", "--raw", "--platform", "linux/arm64", f"docker://{name}").stdout
    assert chosen == ARM.blobs[ARM.target.digest]
    config = here.json("image", "inspect", "--config", "--platform", "linux/arm64", f"docker://{name}")
    assert config["architecture"] == "arm64"
    said = here.run("image", "inspect", "--config", "--platform", "linux/s390x", f"docker://{name}", code=1).stderr
    assert b"no image for linux/s390x in the index, which has linux/amd64, linux/arm64" in said


def test_an_artifact_and_an_image_without_an_index_are_shown(here: Here) -> None:
    assert here.json("image", "inspect", f"docker://{here.put(AMD, 'a')}")["manifest"]
    empty, blob = describe(b"{}", MT_OCI_EMPTY), describe(b"data", "text/plain")
    manifest = msgspec.json.encode(
        {"schemaVersion": 2, "mediaType": MT_OCI_MANIFEST, "artifactType": "application/x-note",
         "config": empty, "layers": [blob]}
    )  # fmt: skip
    target = describe(manifest, MT_OCI_MANIFEST)
    artifact = Image(target, {empty.digest: b"{}", blob.digest: b"data", target.digest: manifest}, [target])
    name = here.put(artifact, "note")
    shown = here.json("image", "inspect", f"docker://{name}")
    assert shown["config"] is None
    here.run("image", "copy", f"docker://{name}", f"docker://{here.host}/copy:1")
    assert here.registry.tree.manifest("copy", "1")[0] == target.digest
    here.run("pull", name)
    assert here.run("image", "inspect", "--raw", name).stdout == manifest


# ------------------------------------------------------------------ image copy


def test_copies_keep_digests_unless_another_form_is_wanted(here: Here) -> None:
    index = make_index({"linux/amd64": AMD, "linux/arm64": ARM})
    name = here.put(index, "both")
    source = f"docker://{name}"
    same = here.out("image", "copy", "--all", "--preserve-digests", source, f"dir:{here.folder}/d").strip()
    assert same == index.target.digest
    docker = here.out("image", "copy", "--format", "v2s2", source, f"docker://{here.host}/docker:1").strip()
    digest, kind, data = here.registry.tree.manifest("docker", "1")
    assert (digest, kind) == (docker, MT_DOCKER_LIST)
    below = json.loads(data)["manifests"]
    assert [one["mediaType"] for one in below] == [MT_DOCKER_MANIFEST] * 2
    assert [one["platform"]["architecture"] for one in below] == ["amd64", "arm64"]
    assert json.loads(here.registry.tree.manifest("docker", below[0]["digest"])[2])["config"]["digest"] == (
        AMD.config and AMD.config.digest
    )
    # There and back again the documents say the same, and an image in the form already keeps its bytes.
    back = f"docker://{here.host}/back:1"
    here.run("image", "copy", "--format", "oci", f"docker://{here.host}/docker:1", back)
    listed = json.loads(here.out("image", "inspect", "--raw", back))["manifests"]
    assert [one["mediaType"] for one in listed] == [MT_OCI_MANIFEST] * 2
    assert here.out("image", "copy", "-q", "--format", "oci", source, back).strip() == index.target.digest
    here.run("pull", f"{here.host}/docker:1")
    assert b"--platform" in here.run("image", "copy", "--all", "--platform", "linux/arm64", "a", "b", code=2).stderr


# ------------------------------------------------------------------ names, archives, labels


def test_save_and_load_by_pipes_and_files(here: Here, tmp_path: Path) -> None:
    name = here.put(AMD, "a")
    here.run("pull", name)
    data = here.run("save", name).stdout
    here.run("save", "-o", f"{tmp_path}/file.tar", name)
    assert (tmp_path / "file.tar").read_bytes() == data
    here.run("rmi", name)
    assert here.out("load", data=data) == f"Loaded: {name}\n"
    assert here.out("image", "label", name, "team=a", "b=c") == "b=c\nteam=a\n"
    here.run("load", "-i", f"{tmp_path}/file.tar")
    assert here.out("image", "label", name, "b=") == "team=a\n"
    assert b"image archive" in here.run("load", data=b"no archive at all", code=1).stderr
    assert b"/nosuch" in here.run("load", "-i", "/nosuch", code=1).stderr
    assert b"/nosuch" in here.run("save", "-o", "/nosuch/x", name, code=1).stderr
    assert sorted(path.name for path in tmp_path.glob("file*")) == ["file.tar"]


# ------------------------------------------------------------------ registries


def test_a_registry_is_looked_into_and_changed(here: Here) -> None:
    name = here.put(AMD, "team/app")
    here.put(AMD, "team/app", "2")
    here.put(ARM, "other")
    assert here.out("registry", "repositories", here.host).split() == ["other", "team/app"]
    assert here.out("registry", "tags", f"{here.host}/team/app").split() == ["1", "2"]
    assert here.json("registry", "resolve", name)["digest"] == AMD.target.digest
    assert json.loads(here.out("registry", "referrers", name)) == []
    assert here.out("registry", "delete", name).strip() == AMD.target.digest
    assert b"404" in here.run("registry", "resolve", name, code=1).stderr
    assert b"404" in here.run("registry", "tags", f"{here.host}/nosuch", code=1).stderr


# ------------------------------------------------------------------ progress


def test_progress_is_lines_json_or_nothing(here: Here) -> None:
    name = here.put(noise_image(2), "a")
    lines = here.run("pull", name).stderr.decode().splitlines()
    assert len([one for one in lines if ": downloaded 30" in one and one.endswith(here.host)]) >= 2
    here.run("rmi", name)
    events = [json.loads(one) for one in here.run("pull", "--progress", "json", name).stderr.splitlines()]
    assert events[0]["kind"] == "resolving"
    assert events[-1]["kind"] == "done"
    assert here.run("pull", "-q", name).stderr == b""
    assert b": mounted 30" in here.run("push", name, f"{here.host}/b:1").stderr
    said = here.run("pull", f"{here.host}/nosuch:1", code=1).stderr.decode()
    assert len(said.splitlines()) == 1


def test_progress_is_bars_on_a_terminal(here: Here) -> None:
    image = noise_image(2)
    name = here.put(image, "a")
    pid, master = pty.fork()
    if pid == 0:
        os.execv(here.command()[0], here.command("pull", name))
    shown = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:
            break
        shown += piece
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(master)
    for layer in image.layers:
        row = rb"%s \[={24}\]  *(30\d kB) / \1  downloaded\x1b\[K\r\n" % layer.digest[7:19].encode()
        assert re.search(row, shown)
    assert b"\x1b[J" in shown
