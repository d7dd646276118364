"""SELinux labels: what a request leaves out is the container policy's."""

import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, strategies

from sampan.engine import selinux
from sampan.engine.model import SelinuxLabel
from sampan.errors import InvalidInput

if TYPE_CHECKING:
    from sampan.storage.mount import Mount


POD = f"{16 * 1023 + 16:012x}".ljust(64, "0")


@pytest.mark.parametrize(
    ("wanted", "privileged", "labels"),
    [
        (SelinuxLabel(), True, ("", "")),
        (
            SelinuxLabel(),
            False,
            ("system_u:system_r:container_t:s0:c16,c17", "system_u:object_r:container_file_t:s0:c16,c17"),
        ),
        (
            SelinuxLabel(level="s0:c1,c2"),
            False,
            ("system_u:system_r:container_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2"),
        ),
        (
            SelinuxLabel(user="u", role="r", type="spc_t", level="s1"),
            True,
            ("u:r:spc_t:s1", "u:object_r:container_file_t:s1"),
        ),
    ],
)
def test_labels(wanted: SelinuxLabel, privileged: bool, labels: tuple[str, str]) -> None:
    assert selinux.labels(wanted, privileged=privileged, pod_id=POD) == labels


def test_a_policy_that_knows_no_containers_has_no_labels_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selinux, "lacks", lambda label: "container" in label)
    assert selinux.labels(SelinuxLabel(), privileged=False, pod_id=POD) == ("", "")
    with pytest.raises(InvalidInput, match=r"selinux_options: this machine's policy has no label 'system_u:system_r:"):
        selinux.labels(SelinuxLabel(level="s0"), privileged=False, pod_id=POD)


def test_what_a_container_leaves_out_is_its_pods() -> None:
    own, pods = SelinuxLabel(type="spc_t", level="s0:c1"), SelinuxLabel(user="u", level="s0:c2")
    assert selinux.merged(own, pods) == SelinuxLabel(user="u", type="spc_t", level="s0:c1")
    assert selinux.merged(None, pods) == selinux.merged(SelinuxLabel(), pods) == pods
    assert selinux.merged(own, None) == own
    assert selinux.merged(None, None) == SelinuxLabel()


@given(strategies.integers(0, (1 << 256) - 1))
def test_a_pod_has_two_categories_in_order(number: int) -> None:
    first, second = selinux.level_of(f"{number:064x}").removeprefix("s0:c").split(",c")
    assert 0 <= int(first) < int(second) < 1024


def test_a_new_pod_gets_categories_that_no_other_has() -> None:
    one, same, other = "0" * 64, "0" * 12 + "1" * 52, "1" * 64
    assert selinux.level_of(one) == selinux.level_of(same) != selinux.level_of(other)
    ids = iter([same, other])
    assert selinux.new_pod_id([one], lambda: next(ids)) == other
    assert selinux.new_pod_id([], lambda: one) == one


def test_pods_rarely_share_their_categories() -> None:
    levels = {selinux.level_of(secrets.token_hex(32)) for _ in range(200)}
    assert len(levels) >= 198


def test_only_overlays_are_mounted_with_a_label(tmp_path: Path) -> None:
    overlay: Mount = {"type": "overlay", "source": "overlay", "options": ["lowerdir=/a"]}
    layer: Mount = {"type": "bind", "source": "/a:b", "options": ["bind", "ro"]}
    empty = tmp_path / "empty"
    assert selinux.labelled([overlay, layer], "", str(empty)) == [overlay, layer]
    assert not empty.exists()
    label = "system_u:object_r:container_file_t:s0:c1,c2"
    first, second = selinux.labelled([overlay, layer], label, str(empty))
    assert first["options"] == ["lowerdir=/a", f"context={label}"]
    assert second["type"] == "overlay"
    assert second["options"] == [f"lowerdir=/a\\:b:{empty}", "ro", f"context={label}"]
    assert empty.is_dir()
    assert overlay["options"] == ["lowerdir=/a"]


@pytest.mark.parametrize("path", ["/", "/etc", "/usr/", "/var/lib", "/home"])
def test_folders_of_the_machine_keep_their_label(path: str) -> None:
    with pytest.raises(InvalidInput, match="keeps its label") as refusal:
        selinux.relabel(path, "label", "mounts[0].selinux_relabel")
    assert refusal.value.field == "mounts[0].selinux_relabel"
