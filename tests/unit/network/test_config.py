"""Which configurations count, and what a kubelet's template renders to."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from sampan import network
from sampan.errors import AlreadyExists, InvalidInput, NotFound
from sampan.network import config
from sampan.network.template import render

ONE = {"cniVersion": "1.0.0", "name": "one", "plugins": [{"type": "external-thing"}]}


def write(folder: Path, name: str, document: Any) -> None:
    text = document if isinstance(document, str) else json.dumps(document)
    (folder / name).write_text(text)


@pytest.fixture
def nets(tmp_path: Path) -> network.Networks:
    (tmp_path / "net.d").mkdir()
    return network.load(str(tmp_path / "net.d"), state_dir=str(tmp_path / "state"), bin_dirs=(), default=False)


@pytest.fixture
def conf(nets: network.Networks) -> Path:
    return Path(nets.conf_dir)


def test_the_first_in_lexical_order_is_the_default(nets: network.Networks, conf: Path) -> None:
    assert nets.default() is None
    write(conf, "20-b.conflist", {**ONE, "name": "b"})
    write(conf, "10-a.conf", {"cniVersion": "0.3.1", "name": "a", "type": "thing"})
    write(conf, "05-not.txt", "nonsense")
    assert nets.names() == ("a", "b")
    assert nets.get("").name == "a"
    assert nets.get("").plugins == ({"cniVersion": "0.3.1", "name": "a", "type": "thing"},)


def test_changes_are_seen(nets: network.Networks, conf: Path) -> None:
    write(conf, "10.conflist", ONE)
    assert nets.names() == ("one",)
    write(conf, "10.conflist", {**ONE, "name": "another"})
    assert nets.names() == ("another",)
    os.unlink(conf / "10.conflist")
    assert nets.names() == ()


def test_a_bad_file_is_an_error_for_the_default_and_not_for_others(nets: network.Networks, conf: Path) -> None:
    write(conf, "10-bad.conflist", "{")
    write(conf, "20-good.conflist", ONE)
    with pytest.raises(InvalidInput, match=r"10-bad.conflist: not JSON"):
        nets.default()
    assert nets.get("one").name == "one"
    with pytest.raises(NotFound, match="10-bad"):
        nets.get("bad")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "JSON object"),
        ({**ONE, "cniVersion": "9.9.9"}, "cniVersion: CNI 9.9.9"),
        ({"name": "x", "plugins": [{"type": "t"}]}, "cniVersion: CNI 0.1.0"),
        ({**ONE, "name": "../x"}, "name: '../x'"),
        ({**ONE, "plugins": []}, "plugins: a network has 1 to 64"),
        ({**ONE, "plugins": {"type": "x"}}, "plugins: Expected `array`"),
        ({"cniVersion": "1.0.0", "name": "x"}, "plugins: a conflist has a list"),
        ({**ONE, "plugins": [{"type": "a"}, {"type": 5}]}, r"plugins\[1\]\.type: Expected `str`"),
        ({**ONE, "plugins": [{"type": "a", "ipam": {"type": "../x"}}]}, r"plugins\[0\]\.ipam\.type"),
    ],
)
def test_bad_documents(nets: network.Networks, conf: Path, document: Any, message: str) -> None:
    write(conf, "10.conflist", document)
    with pytest.raises(InvalidInput, match=message):
        nets.default()


def test_the_newest_version_of_several_is_used(nets: network.Networks, conf: Path) -> None:
    write(conf, "10.conflist", {**ONE, "cniVersion": "0.4.0", "cniVersions": ["0.3.1", "0.4.0", "1.0.0", "2.0.0"]})
    assert nets.get("").version == "1.0.0"


def test_plugins_in_files_of_their_own(nets: network.Networks, conf: Path) -> None:
    """Beside the conflist, in a directory of the network's name; they come behind those of the list."""
    write(conf, "10.conflist", ONE)
    (conf / "one").mkdir()
    write(conf / "one", "20-b.conf", {"type": "b"})
    write(conf / "one", "10-a.conf", {"type": "a"})
    write(conf / "one", "30-c.json", {"type": "c"})
    assert [plugin["type"] for plugin in nets.get("one").plugins] == ["external-thing", "a", "b"]
    write(conf / "one", "20-b.conf", {"type": "another"})
    assert [plugin["type"] for plugin in nets.get("one").plugins] == ["external-thing", "a", "another"]
    write(conf, "10.conflist", {"cniVersion": "1.0.0", "name": "one"})
    assert [plugin["type"] for plugin in nets.get("one").plugins] == ["a", "another"]
    write(conf, "10.conflist", {**ONE, "loadOnlyInlinedPlugins": True})
    assert [plugin["type"] for plugin in nets.get("one").plugins] == ["external-thing"]
    write(conf, "10.conflist", {"cniVersion": "1.0.0", "name": "one", "loadOnlyInlinedPlugins": "TRUE"})
    with pytest.raises(InvalidInput, match=r"10.conflist: plugins: a conflist has a list"):
        nets.default()


def test_a_bad_plugin_in_a_file_of_its_own(nets: network.Networks, conf: Path) -> None:
    write(conf, "10.conflist", ONE)
    (conf / "one").mkdir()
    for document, message in (
        ("{", "not JSON"),
        ({"type": "bridge", "mtu": "big"}, "mtu: Expected `int`"),
        ({}, "missing required field `type`"),
        ([], "Expected `object`"),
    ):
        write(conf / "one", "a.conf", document)
        with pytest.raises(InvalidInput, match=message) as failure:
            nets.default()
        assert failure.value.message.startswith(f"{conf}/one/a.conf: ")


@pytest.mark.parametrize("key", ["disableCheck", "disableGC", "loadOnlyInlinedPlugins"])
def test_flags_are_booleans_or_words(nets: network.Networks, conf: Path, key: str) -> None:
    for value in (True, False, "true", "False"):
        write(conf, "10.conflist", {**ONE, key: value})
        nets.default()
    write(conf, "10.conflist", {**ONE, key: "often"})
    with pytest.raises(InvalidInput, match=rf"10.conflist: {key}: 'often' is neither true nor false"):
        nets.default()


def test_files_that_come_and_go_hide_no_other(nets: network.Networks, conf: Path) -> None:
    write(conf, "10.conflist", ONE)
    (conf / "05-nowhere.conflist").symlink_to("/nonexistent")
    ended = threading.Event()

    def churn() -> None:
        while not ended.is_set():
            write(conf, "20-other.conflist", {**ONE, "name": "other"})
            (conf / "20-other.conflist").unlink()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        assert all(nets.get("one").name == "one" for _ in range(300))
    finally:
        ended.set()
        thread.join()


def test_create_and_remove(tmp_path: Path) -> None:
    nets = network.load(str(tmp_path / "net.d"), state_dir=str(tmp_path / "state"))
    nets.state.set_fact("built-in subnet", "10.88.0.0/16")
    path = network.create(nets, "blue", subnet="10.70.0.0/24", ipv6=True, mtu=1400)
    assert os.path.basename(path) == "90-blue.conflist"
    # The network that pods had by default is still the default one.
    assert nets.names() == ("sampan", "blue")
    plugin = nets.get("blue").plugins[0]
    assert plugin["bridge"] == "sp-blue"
    assert plugin["ipam"]["ranges"][0] == [{"subnet": "10.70.0.0/24"}]
    assert plugin["ipam"]["ranges"][1][0]["subnet"].startswith("fd")
    with pytest.raises(AlreadyExists, match="blue exists"):
        network.create(nets, "blue")
    with pytest.raises(AlreadyExists, match=r"overlaps 10\.70\.0\.0/24 of network blue"):
        network.create(nets, "red", subnet="10.70.0.128/25")
    with pytest.raises(InvalidInput):
        network.create(nets, "red", subnet="10.70.0.1/25")


def test_pod_cidr_fills_the_built_in_network(tmp_path: Path) -> None:
    nets = network.load(str(tmp_path / "net.d"), state_dir=str(tmp_path / "state"))
    nets.set_pod_cidr("10.5.0.0/24,fd05::/64")
    ranges = nets.get("").plugins[0]["ipam"]["ranges"]
    assert ranges == [[{"subnet": "10.5.0.0/24"}], [{"subnet": "fd05::/64"}]]
    with pytest.raises(InvalidInput, match="pod_cidr"):
        nets.set_pod_cidr("10.5.0.0/99")


TEMPLATE = """
{"name": "k", "cniVersion": "1.0.0", "plugins": [{"type": "ptp", "ipam": {"type": "host-local",
 "note": "{{.PodCIDR}}",
 "ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],
 "routes": [{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}]}}]}
"""


def test_template() -> None:
    ipam = json.loads(render(TEMPLATE, ["10.1.0.0/24", "fd01::/64"]))["plugins"][0]["ipam"]
    assert ipam["note"] == "10.1.0.0/24"
    assert ipam["ranges"] == [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd01::/64"}]]
    assert ipam["routes"] == [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    assert json.loads(render(TEMPLATE, ["10.1.0.0/24"]))["plugins"][0]["ipam"]["routes"] == [{"dst": "0.0.0.0/0"}]


def test_template_with_an_unknown_action() -> None:
    with pytest.raises(InvalidInput, match="not known"):
        render('{"a": "{{.Other}}"}', ["10.0.0.0/24"])


def test_template_file(tmp_path: Path) -> None:
    (tmp_path / "template").write_text(TEMPLATE)
    nets = network.load(str(tmp_path / "net.d"), state_dir=str(tmp_path / "state"), default=False)
    nets.set_pod_cidr("10.1.0.0/24", str(tmp_path / "template"))
    assert nets.get("").name == "k"
    write(tmp_path / "net.d", "00-first.conflist", ONE)
    (tmp_path / "net.d" / "10-sampan-net.conflist").unlink()
    nets.set_pod_cidr("10.2.0.0/24", str(tmp_path / "template"))
    assert nets.names() == ("one",)


def test_public_names() -> None:
    assert all(hasattr(network, name) for name in network.__all__)
    assert config.BUILT_IN == "sampan"
