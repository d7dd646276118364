"""CDI specifications: found by their names, applied to config.json, refused with the file and the field."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from sampan.engine import cdi
from sampan.errors import InvalidInput

DOCUMENT: dict[str, Any] = {
    "process": {"env": ["PATH=/bin", "A=old"], "user": {"uid": 0, "gid": 0, "additionalGids": [5]}},
    "mounts": [],
    "linux": {"devices": [], "resources": {"devices": [{"allow": False, "access": "rwm"}]}},
}


def write(folder: Path, name: str, *devices: dict[str, Any], common: dict[str, Any] | None = None) -> None:
    folder.mkdir(exist_ok=True)
    document = {"cdiVersion": "0.6.0", "kind": "vendor.com/gpu", "devices": list(devices)}
    (folder / name).write_text(json.dumps({**document, **({"containerEdits": common} if common else {})}))


def applied(folders: list[Path], *names: str) -> dict[str, Any]:
    document = copy.deepcopy(DOCUMENT)
    cdi.apply(document, names, [str(folder) for folder in folders])
    return document


def test_every_edit_arrives(tmp_path: Path) -> None:
    edits = {
        "env": ["A=new", "B=b"],
        "deviceNodes": [
            {"path": "/dev/null2", "hostPath": "/dev/null", "permissions": "rw", "uid": 7},
            {"path": "/dev/other", "type": "c", "major": 10, "minor": 200},
        ],
        "mounts": [{"hostPath": "/usr/lib", "containerPath": "/lib2"}],
        "hooks": [{"hookName": "createContainer", "path": "/bin/ldconfig", "args": ["ldconfig"]}],
        "additionalGids": [0, 5, 44],
    }
    write(tmp_path, "v.json", {"name": "0", "containerEdits": edits})
    found = applied([tmp_path], "vendor.com/gpu=0")
    assert found["process"]["env"] == ["PATH=/bin", "A=new", "B=b"]
    assert found["process"]["user"]["additionalGids"] == [5, 44]
    first, second = found["linux"]["devices"]
    assert (first["path"], first["type"], first["major"], first["minor"], first["uid"]) == ("/dev/null2", "c", 1, 3, 7)
    assert second == {"path": "/dev/other", "type": "c", "major": 10, "minor": 200}
    rules = found["linux"]["resources"]["devices"][1:]
    assert [(rule["major"], rule["minor"], rule["access"]) for rule in rules] == [(1, 3, "rw"), (10, 200, "rwm")]
    assert found["mounts"] == [
        {"destination": "/lib2", "type": "bind", "source": "/usr/lib", "options": ["rbind", "ro", "nosuid", "nodev"]}
    ]
    assert found["hooks"] == {"createContainer": [{"path": "/bin/ldconfig", "args": ["ldconfig"]}]}


def test_what_devices_share_is_done_once(tmp_path: Path) -> None:
    common = {"mounts": [{"hostPath": "/usr/lib", "containerPath": "/lib2"}]}
    write(tmp_path, "v.json", {"name": "0"}, {"name": "1"}, common=common)
    assert len(applied([tmp_path], "vendor.com/gpu=0", "vendor.com/gpu=1")["mounts"]) == 1


def test_a_later_folder_counts_more(tmp_path: Path) -> None:
    first, second = tmp_path / "etc", tmp_path / "run"
    write(first, "v.json", {"name": "0", "containerEdits": {"env": ["A=first"]}})
    write(second, "v.json", {"name": "0", "containerEdits": {"env": ["A=second"]}})
    assert "A=second" in applied([first, second], "vendor.com/gpu=0")["process"]["env"]


def test_two_of_one_folder_are_a_conflict(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        write(tmp_path, name, {"name": "0"})
    with pytest.raises(InvalidInput, match=r"CDI_devices\[0\]: .* is described by .*a\.json and .*b\.json"):
        applied([tmp_path], "vendor.com/gpu=0")


@pytest.mark.parametrize("name", ["", "gpu", "vendor.com/gpu", "vendor.com/gpu=", "../x/y=z", "a/b=c\n", "a/b=c\0"])
def test_a_name_that_is_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match=r"CDI_devices\[0\]: .*is not of the form"):
        applied([tmp_path], name)


@pytest.mark.parametrize(
    ("edits", "field"),
    [
        ({"env": ["A"]}, "env"),
        ({"deviceNodes": [{"path": "dev"}]}, "deviceNodes.path"),
        ({"deviceNodes": [{"path": "/dev/a", "hostPath": "/no/such"}]}, "deviceNodes.hostPath"),
        ({"deviceNodes": [{"path": "/etc/passwd"}]}, "deviceNodes.hostPath"),
        ({"mounts": [{"hostPath": "/a/../b", "containerPath": "/c"}]}, "mounts.hostPath"),
        ({"mounts": "x"}, "mounts"),
        ({"hooks": [{"hookName": "never", "path": "/a"}]}, "hooks.hookName"),
        ({"hooks": [{"hookName": "prestart", "path": "a"}]}, "hooks.path"),
    ],
)
def test_a_wrong_edit_names_file_and_field(tmp_path: Path, edits: dict[str, Any], field: str) -> None:
    write(tmp_path, "v.json", {"name": "0", "containerEdits": edits})
    with pytest.raises(InvalidInput) as caught:
        applied([tmp_path], "vendor.com/gpu=0")
    assert caught.value.field == f"{tmp_path}/v.json: {field}"


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "x"}', '{"kind": "a/b", "devices": [{}]}', "[" * 100_000])
def test_a_broken_file_spoils_no_other(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    write(tmp_path, "v.json", {"name": "0", "containerEdits": {"env": ["A=here"]}})
    assert "A=here" in applied([tmp_path], "vendor.com/gpu=0")["process"]["env"]
    with pytest.raises(InvalidInput, match=r"no CDI specification describes .*a\.json"):
        applied([tmp_path], "vendor.com/gpu=9")


def test_annotations_ask_too() -> None:
    annotations = {"cdi.k8s.io/x": "v.com/a=1, v.com/a=2", "other": "v.com/a=3"}
    assert cdi.asked_for(["v.com/a=2"], annotations) == ("v.com/a=2", "v.com/a=1")
