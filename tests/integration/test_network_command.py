"""`sampan network` and `sampan run --network` as a person uses them, with no daemon."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_world import World, world

SLEEP = ("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("network-command")) as made:
        yield made


@pytest.fixture
def blue(here: World) -> Iterator[str]:
    """A network of a person's own; gone at the end with whatever is on it."""
    made = here.sampan("network", "create", "--subnet", "10.203.8.0/24", "spnblue")
    assert made.returncode == 0, made.stderr
    assert Path(made.stdout.strip()).name == "90-spnblue.conflist"
    yield "spnblue"
    here.remove_everything()
    assert here.sampan("network", "rm", "spnblue").returncode == 0
    assert not Path("/sys/class/net/sp-spnblue").exists()


def run(here: World, name: str, *flags: str) -> None:
    done = here.sampan("run", "-d", "--name", name, *flags, "--rootfs", "/", *SLEEP)
    assert done.returncode == 0, done.stderr


def lookup(here: World, where: str, name: str) -> str:
    """Address that a name has inside a container, by the machine's own C library."""
    done = here.sampan("exec", where, "getent", "ahostsv4", name)
    assert done.stderr == ""
    return done.stdout.split(" ")[0]


def test_names_resolve_among_the_containers_of_a_network(here: World, blue: str) -> None:
    run(here, "one", "--network", blue)
    run(here, "two", "--network", blue, "--hostname", "second")
    assert lookup(here, "one", "two") == "10.203.8.3"  # which came later
    assert lookup(here, "one", "second") == "10.203.8.3"
    assert lookup(here, "two", f"one.{blue}") == "10.203.8.2"
    assert lookup(here, "one", "one") == "10.203.8.2"
    run(here, "apart", "--network", "bridge")
    assert lookup(here, "apart", "one") == ""
    run(here, "both", "--network", "bridge", "--network", blue)
    assert lookup(here, "both", "one") == "10.203.8.2"
    links = here.sampan("exec", "both", "ls", "/sys/class/net").stdout.split()
    assert {"eth0", "eth1"} <= set(links)
    assert here.sampan("rm", "-f", "two").returncode == 0
    assert lookup(here, "one", "two") == ""
    assert lookup(here, "one", "both") == "10.203.8.4"


def test_a_port_of_the_machine(here: World, blue: str) -> None:
    script = "mkdir /tmp/www; echo hello > /tmp/www/index.html; exec busybox httpd -f -p 80 -h /tmp/www"
    done = here.sampan(
        "run", "-d", "--name", "web", "--network", blue, "-p", "127.0.0.1:18080:80", here.image, "sh", "-c", script
    )
    assert done.returncode == 0, done.stderr
    wait = "until busybox wget -q -O - http://127.0.0.1/ 2>/dev/null; do sleep 0.05; done"
    answered = here.sampan("exec", "web", "sh", "-c", wait)
    assert answered.stdout == "hello\n", answered.stderr
    with urllib.request.urlopen("http://127.0.0.1:18080/", timeout=10) as answer:
        assert answer.read() == b"hello\n"
    taken = here.sampan("run", "--rm", "--network", blue, "-p", "127.0.0.1:18080:81", here.image, "true")
    assert taken.returncode == 125
    assert "host port 18080/tcp is taken" in taken.stderr


def test_what_is_shown(here: World, blue: str) -> None:
    run(here, "one", "--network", blue)
    rows = [line.split() for line in here.sampan("network", "ls").stdout.splitlines()]
    assert rows[0] == ["NAME", "PLUGINS", "SUBNETS", "CONTAINERS", "FILE"]
    row = next(row for row in rows if row[0] == blue)
    assert row[2:4] == ["10.203.8.0/24", "1"]
    assert here.sampan("network", "ls", "-q").stdout.split() == ["test", blue]
    shown = json.loads(here.sampan("network", "inspect", blue).stdout)
    assert shown["conflist"]["plugins"][0]["bridge"] == f"sp-{blue}"
    assert [(one["interface"], one["addresses"]) for one in shown["containers"]] == [("eth0", ["10.203.8.2/24"])]
    refused = here.sampan("network", "rm", blue)
    assert refused.returncode != 0
    assert "has containers" in refused.stderr


def test_programs_that_a_network_needs_are_shown(here: World) -> None:
    conflist = here.folder / "cni/95-outside.conflist"
    plugins = [{"type": "mirror"}, {"type": "absent"}]
    conflist.write_text(json.dumps({"cniVersion": "1.0.0", "name": "outside", "plugins": plugins}))
    mirror = here.folder / "mirror"
    mirror.write_text("""#!/bin/sh\necho '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}'\n""")
    mirror.chmod(0o755)
    config = here.config_file.read_text()
    here.config_file.write_text(config.replace("[network]\n", f'[network]\nplugin_dirs = ["{here.folder}"]\n'))
    try:
        shown = json.loads(here.sampan("network", "inspect", "outside").stdout)
    finally:
        here.config_file.write_text(config)
        conflist.unlink()
    good, bad = shown["programs"]
    assert good == {"type": "mirror", "path": str(mirror), "versions": ["0.4.0", "1.0.0"], "fault": ""}
    assert "absent is in none of" in bad["fault"]


def test_reconcile_puts_back_and_frees(here: World, blue: str) -> None:
    run(here, "one", "--network", blue, "-p", "18081:80")
    engine = here.engine()
    table = engine.networks.state.table
    engine.close()
    subprocess.run(["nft", "delete", "table", "inet", table], check=True)
    done = json.loads(here.sampan("network", "reconcile").stdout)
    assert done["attachments"] == []
    assert done["rules_restored"] > 0
    assert b"18081" in subprocess.check_output(["nft", "list", "table", "inet", table])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("network", "create", "--subnet", "10.203.7.128/25", "x"), "overlaps 10.203.7.0/24 of network test"),
        (("network", "create", "a,b"), "is no name for a network"),
        (("network", "inspect", "absent"), "no network absent"),
        (("network", "rm", "absent"), "no network absent"),
        (("run", "--network", "absent", "--rootfs", "/", "true"), "no network absent"),
        (("run", "--network", "host", "--network", "test", "--rootfs", "/", "true"), "stand alone"),
    ],
)
def test_what_is_refused(here: World, words: tuple[str, ...], text: str) -> None:
    done = here.sampan(*words)
    assert done.returncode != 0
    assert text in done.stderr
    assert here.sampan("ps", "-aq").stdout == ""
