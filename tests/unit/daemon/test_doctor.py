"""`sampan doctor` on machines made of files, and on this one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sampan.daemon import config as configuration
from sampan.daemon import doctor, machine
from sampan.daemon.findings import Finding, worst

GOOD = {
    "proc/sys/kernel/osrelease": "6.12.1",
    "proc/sys/kernel/seccomp/actions_avail": "kill_process errno allow",
    "proc/sys/net/ipv4/ip_forward": "1",
    "proc/sys/net/bridge/bridge-nf-call-iptables": "1",
    "proc/sys/fs/inotify/max_user_instances": "8192",
    "proc/sys/user/max_user_namespaces": "60000",
    "proc/self/status": "CapBnd:\t000001ffffffffff",
    "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory hugetlb pids",
    "lib/modules/6.12.1/modules.dep": "fs/overlayfs/overlay.ko.xz:\nnet/veth.ko:\nnet/bridge.ko: a\n",
    "lib/modules/6.12.1/modules.builtin": "kernel/net/netfilter/nf_tables.ko\n",
    **{f"proc/self/ns/{kind}": "" for kind in ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")},
}


def made_of(folder: Path, **changes: str | None) -> str:
    """A machine's files; ``None`` takes one away."""
    for name, text in {**GOOD, **{k.replace("__", "/"): v for k, v in changes.items()}}.items():
        if text is None:
            continue
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(folder)


def about(findings: list[Finding], name: str) -> Finding:
    (found,) = (finding for finding in findings if finding.name == name)
    return found


def test_a_good_machine_has_no_fault(tmp_path: Path) -> None:
    findings = [f for f in machine.examine(made_of(tmp_path)) if f.area != "privileges"]
    assert [f for f in findings if f.verdict != "ok"] == []
    assert about(findings, "overlay").message == "loaded when it is needed"
    assert about(findings, "nf_tables").message == "built in"


@pytest.mark.parametrize(
    ("file", "text", "name", "verdict", "mend"),
    [
        ("proc/sys/kernel/osrelease", "4.19.0", "release", "error", "newer kernel"),
        ("proc/sys/kernel/osrelease", "5.11.9", "release", "error", "newer kernel"),
        ("proc/sys/kernel/osrelease", "5.12.0", "release", "warning", "5.19"),
        ("proc/self/ns/user", None, "user namespaces", "error", "kernel"),
        ("proc/self/status", "CapBnd:\t0", "CAP_SYS_ADMIN", "error", "outside of a container"),
        ("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io hugetlb pids", "memory", "error", "cgroup_enable=memory"),
        ("sys/fs/cgroup/cgroup.controllers", "cpu memory pids", "controllers", "warning", "boot"),
        ("proc/sys/net/ipv4/ip_forward", "0", "net.ipv4.ip_forward", "error", "sysctl -w net.ipv4.ip_forward=1"),
        ("proc/sys/net/bridge/bridge-nf-call-iptables", "0", "net.bridge.bridge-nf-call-iptables", "warning", "=1"),
        ("proc/sys/fs/inotify/max_user_instances", "128", "fs.inotify.max_user_instances", "warning", "=512"),
        ("proc/sys/user/max_user_namespaces", "0", "user.max_user_namespaces", "warning", "sysctl -w"),
        ("proc/sys/kernel/seccomp/actions_avail", None, "seccomp", "error", "CONFIG_SECCOMP_FILTER"),
        ("lib/modules/6.12.1/modules.dep", None, "overlay", "error", "modprobe overlay"),
        ("lib/modules/6.12.1/modules.dep", None, "veth", "warning", "modprobe veth"),
    ],
)
def test_a_fault_has_its_mend(tmp_path: Path, file: str, text: str | None, name: str, verdict: str, mend: str) -> None:
    findings = list(machine.examine(made_of(tmp_path, **{file.replace("/", "__"): text})))
    found = about(findings, name)
    assert found.verdict == verdict
    assert mend in found.mend


def test_a_driver_that_cannot_be(tmp_path: Path) -> None:
    root = made_of(tmp_path)
    assert about(list(machine.cgroups(root, systemd=True)), "driver").verdict == "error"
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    assert about(list(machine.cgroups(root, systemd=True)), "driver").verdict == "ok"
    assert about(list(machine.cgroups(root, systemd=False)), "driver").verdict == "warning"


def test_registries_are_read_and_a_broken_file_is_named(tmp_path: Path) -> None:
    for name, text in (("good.example", 'server = "https://mirror.example"\n'), ("bad.example", "server = [\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "hosts.toml").write_text(text)
    config = configuration.Config(registry=configuration.RegistryConfig(config_path=(str(tmp_path),)))
    findings = list(doctor.registries(config, online=False))
    assert about(findings, "good.example").message == "https://mirror.example/v2"
    assert about(findings, "bad.example").verdict == "error"
    assert str(tmp_path / "bad.example" / "hosts.toml") in about(findings, "bad.example").message


def test_a_registry_that_nobody_answers_for(tmp_path: Path) -> None:
    (tmp_path / "here.example").mkdir()
    (tmp_path / "here.example" / "hosts.toml").write_text('server = "http://127.0.0.1:1"\n')
    config = configuration.Config(registry=configuration.RegistryConfig(config_path=(str(tmp_path),)))
    findings = [f for f in doctor.registries(config, online=True) if "docker" not in f.name]
    assert about(findings, "127.0.0.1:1").verdict == "warning"


def test_runtimes_that_are_missing_or_say_nothing(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    new = tmp_path / "new"
    new.write_text(
        '#!/bin/sh\necho \'{"mountOptions": ["rro"], "linux": {"namespaces": ["user"],'
        ' "mountExtensions": {"idmap": {"enabled": true}}}}\'\n'
    )
    new.chmod(0o755)
    made = configuration.RuntimeConfig
    config = configuration.Config(
        runtimes={
            "sampan": made(),
            "gone": made(type="external", binary="/no/such"),
            "old": made(type="external", binary=str(old)),
            "new": made(type="external", binary=str(new)),
        }
    )
    findings = list(doctor.runtimes(config))
    assert {f.name: f.verdict for f in findings} == {"sampan": "ok", "gone": "error", "old": "warning", "new": "ok"}
    assert "user namespaces, recursive read-only mounts" in about(findings, "new").message
    assert worst(findings) == "error"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("sampan")
    return subprocess.run([program, *words], capture_output=True, text=True, timeout=60, check=False)


def test_the_command_tells_and_says_by_its_code(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        f'root = "{tmp_path}/root"\nstate = "{tmp_path}/state"\n'
        f'[runtimes.gone]\ntype = "external"\nbinary = "/no/such"\n'
    )
    done = run("--config", str(config), "doctor", "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 1
    assert document["verdict"] == "error"
    faults = {finding["name"] for finding in document["findings"] if finding["verdict"] == "error"}
    assert "gone" in faults
    assert os.listdir(tmp_path) == ["config.toml"]  # an examination is no start
    told = run("--config", str(config), "doctor", "-q")
    assert "FAIL  runtimes: gone: /no/such is not installed" in told.stdout
    assert "-> install it, or take [runtimes.gone] out of the configuration" in told.stdout
    assert not any(line.startswith("ok") for line in told.stdout.splitlines())


def test_the_command_looks_where_it_is_told_to(tmp_path: Path) -> None:
    root = tmp_path / "elsewhere"
    root.mkdir()
    (root / "snapshotter").write_text("native\n")
    config = tmp_path / "config.toml"
    config.touch()
    said = run("--config", str(config), "--root", str(root), "--state", str(tmp_path / "state"), "doctor", "--json")
    storage = [finding for finding in json.loads(said.stdout)["findings"] if finding["area"] == "storage"]
    assert any(finding["message"].startswith(f"{root}: ") for finding in storage)
    assert any(finding["message"].startswith("native") for finding in storage)
    assert os.listdir(root) == ["snapshotter"]


def test_a_faulty_configuration_is_a_finding(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("log_level = 5\n")
    done = run("--config", str(config), "doctor", "-q")
    assert done.returncode == 1
    assert f"FAIL  configuration: files: {config}: log_level" in done.stdout


def test_no_conflist_is_a_fault_where_the_built_in_network_is_off(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'root = "{tmp_path}/root"\n[network]\nconf_dir = "{tmp_path}/cni"\nbuilt_in = false\n')
    (found,) = doctor.networks(configuration.load(str(config)))
    assert (found.name, found.verdict) == ("default network", "error")
    assert f"{tmp_path}/cni" in found.message
    assert "built_in" in found.mend
    plugins = doctor.plugins(configuration.load(str(config)))
    assert [(each.name, each.status) for each in plugins if each.type == "network"] == [("(default)", "error")]


def test_plugins_are_listed(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        f'root = "{tmp_path}/root"\nstate = "{tmp_path}/state"\n[network]\nconf_dir = "{tmp_path}/cni"\n'
        f'[runtimes.gone]\ntype = "external"\nbinary = "/no/such"\n'
    )
    (tmp_path / "cni").mkdir()
    (tmp_path / "cni" / "10-bad.conflist").write_text("{")
    listed = json.loads(run("--config", str(config), "plugins", "--json").stdout)
    status = {(plugin["type"], plugin["name"]): plugin["status"] for plugin in listed}
    assert status["runtime", "sampan"] == "ok"
    assert status["runtime", "gone"] == "error"
    assert status["snapshotter", "native"] == "ok"
    assert any(kind == "network" and state == "error" for (kind, _), state in status.items())
    assert sorted(os.listdir(tmp_path)) == ["cni", "config.toml"]
    table = run("--config", str(config), "plugins").stdout.splitlines()
    assert table[0].split() == ["TYPE", "NAME", "STATUS", "DETAIL"]
