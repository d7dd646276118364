"""The leftover check itself is tested: what it must see, it sees, and it is silent when all is gone."""

import os
import subprocess
from pathlib import Path

import pytest
from machine_state import MachineState, settled_since

pytestmark = pytest.mark.root


def test_unchanged_machine_has_nothing_left() -> None:
    before = MachineState.take()
    assert [line for line in settled_since(before) if "test_machine_clean" in line] == []


def test_mount_is_seen(tmp_path: Path) -> None:
    before = MachineState.take()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(tmp_path)], check=True)
    left = MachineState.take().left_since(before)
    subprocess.run(["umount", str(tmp_path)], check=True)
    assert f"mount: {tmp_path} (tmpfs)" in left
    assert f"mount: {tmp_path} (tmpfs)" not in MachineState.take().left_since(before)


def test_process_and_its_namespaces_are_seen() -> None:
    before = MachineState.take()
    with subprocess.Popen(["unshare", "--net", "--ipc", "sleep", "73.25"]) as process:
        try:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            while b"sleep\x0073.25" not in Path(f"/proc/{process.pid}/cmdline").read_bytes()[:12]:
                pass
            left = MachineState.take().left_since(before)
            spaces = {os.readlink(f"/proc/{process.pid}/ns/{kind}") for kind in ("net", "ipc")}
        finally:
            process.kill()
    assert any(line.startswith("process:") and line.endswith("sleep 73.25") for line in left)
    assert {f"namespace: {space}" for space in spaces} <= set(left)


def test_cgroup_and_link_and_rule_are_seen() -> None:
    name = f"sampantest{os.getpid() % 10000}"
    parent = next(
        path for path in ("/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified", "/sys/fs/cgroup") if os.path.isdir(path)
    )
    before = MachineState.take()
    group = Path(parent) / name
    group.mkdir()
    try:
        subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=True)
        subprocess.run(["nft", "add", "table", "ip", name], check=True)
        left = MachineState.take().left_since(before)
    finally:
        subprocess.run(["ip", "link", "del", name], check=False)
        subprocess.run(["nft", "delete", "table", "ip", name], check=False)
        group.rmdir()
    assert f"cgroup: {group}" in left
    assert f"network link: {name}" in left
    assert any(line.startswith("nftables rule:") and name in line for line in left)
    assert [line for line in settled_since(before, 1) if name in line] == []
