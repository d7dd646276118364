"""Containers in user namespaces, new and joined."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from runtime_bundle import Box, read_terminal

from sampan.errors import StageFailed
from sampan.runtime.sandbox import create_sandbox, destroy_sandbox

pytestmark = pytest.mark.root

MAPPING = [{"containerID": 0, "hostID": 200000, "size": 65536}]


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path)
    made.linux["uidMappings"] = MAPPING
    made.linux["gidMappings"] = MAPPING
    for path in (made.rootfs, *made.rootfs.rglob("*")):
        os.lchown(path, 200000, 200000)
    yield made
    made.discard()


def _own(box: Box) -> None:
    box.linux["namespaces"].append({"type": "user"})


def test_root_inside_is_nobody_outside(box: Box) -> None:
    _own(box)
    said = box.sh("id -u; cat /proc/self/uid_map; stat -c '%u %t:%T' /dev/null; touch /tmp/mine; echo x > /dev/null")
    assert said.split() == ["0", "0", "200000", "65536", "65534", "1:3"]
    assert os.stat(box.rootfs / "tmp" / "mine").st_uid == 200000


def test_message_queues_are_the_containers_own(box: Box) -> None:
    _own(box)
    assert box.sh("stat -c %u:%g /dev/mqueue") == "0:0"


def test_created_init_is_the_mapped_user(box: Box) -> None:
    _own(box)
    created = box.create("sleep", "100")
    assert os.stat(f"/proc/{created.pid}").st_uid == 200000
    box.handler.start(box.container_id)
    ended = box.exec("sh", "-c", "id -u; readlink /proc/self/ns/user")
    assert ended.output.split() == ["0", os.readlink(f"/proc/{created.pid}/ns/user")]
    box.discard(created)


def test_limits_and_terminal_and_user_in_a_user_namespace(box: Box) -> None:
    _own(box)
    box.process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 64, "hard": 64}]
    box.process["user"] = {"uid": 33, "gid": 33, "additionalGids": [44]}
    box.process["oomScoreAdj"] = 10
    box.process["terminal"] = True
    created = box.create("sh", "-c", "id -u; id -G; ulimit -n; tty; cat /proc/self/oom_score_adj")
    box.handler.start(box.container_id)
    output = read_terminal(created.console)
    os.close(created.console)
    os.waitpid(created.pid, 0)
    assert output.split() == ["33", "33", "44", "64", "/dev/pts/0", "10"]


def test_devices_in_a_user_namespace_are_those_that_were_asked_for(box: Box) -> None:
    _own(box)
    box.linux["devices"] = [
        {"type": "c", "path": "/dev/full", "major": 1, "minor": 7},
        {"type": "p", "path": "/dev/pipe", "fileMode": 0o640, "uid": 5, "gid": 6},
    ]
    assert box.sh("stat -c %t:%T /dev/full; stat -c '%F %a %u:%g' /dev/pipe") == "1:7\nfifo 640 5:6"
    box.linux["devices"][0]["minor"] = 5
    with pytest.raises(StageFailed, match="make device at /dev/full: EINVAL: the machine has something else there"):
        box.create("true")


def test_a_multiplexer_that_is_asked_for_is_the_containers(box: Box) -> None:
    """Engines list all of the machine's devices for a privileged container."""
    _own(box)
    box.linux["devices"] = [{"type": "c", "path": "/dev/ptmx", "major": 5, "minor": 2}]
    assert box.sh("readlink /dev/ptmx") == "pts/ptmx"


def test_a_program_opens_its_streams_anew(box: Box) -> None:
    _own(box)
    box.process["user"] = {"uid": 33, "gid": 33}
    assert box.sh("echo said > /dev/stdout; stat -L -c %u:%g /dev/stdout") == "said\n33:33"


def test_a_bind_whose_parents_the_user_may_not_search(box: Box, tmp_path: Path) -> None:
    _own(box)
    secret = tmp_path / "closed" / "volume"
    secret.mkdir(parents=True)
    (secret / "file").write_text("content")
    (tmp_path / "closed").chmod(0o700)
    box.config["mounts"].append(
        {"destination": "/data", "type": "bind", "source": str(secret), "options": ["rbind", "ro"]}
    )
    assert box.sh("cat /data/file; ! touch /data/x 2>/dev/null") == "content"


def test_an_id_mapped_root_volume(box: Box, tmp_path: Path) -> None:
    _own(box)
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "file").touch()
    box.config["mounts"].append(
        {"destination": "/data", "type": "bind", "source": str(volume), "options": ["bind", "idmap"]}
    )
    assert box.sh("stat -c %u /data/file; touch /data/new") == "0"
    assert (volume / "new").stat().st_uid == 0


def test_a_container_in_a_pods_user_namespace(box: Box, tmp_path: Path) -> None:
    directory = str(tmp_path / "ns")
    sandbox = create_sandbox(
        directory,
        ["network", "ipc", "uts", "user"],
        hostname="pod",
        uid_mappings=MAPPING,  # type: ignore[arg-type]
        gid_mappings=MAPPING,  # type: ignore[arg-type]
        pause=True,
    )
    try:
        assert os.stat(f"/proc/{sandbox.pause_pid}").st_uid == 65535 + 200000
        joined = [{"type": kind, "path": path} for kind, path in sandbox.paths.items()]
        box.linux["namespaces"] = [{"type": "mount"}, {"type": "cgroup"}, *joined]
        del box.config["hostname"]
        created = box.create("sleep", "100")
        assert os.stat(f"/proc/{created.pid}").st_uid == 200000
        for kind in ("net", "ipc", "uts", "user", "pid"):
            pause = os.readlink(f"/proc/{sandbox.pause_pid}/ns/{kind}")
            assert os.readlink(f"/proc/{created.pid}/ns/{kind}") == pause
        box.handler.start(box.container_id)
        assert box.exec("hostname").output == "pod\n"
        assert box.exec("stat", "-c", "%u:%g", "/dev/mqueue").output == "0:0\n"
        box.discard(created)
    finally:
        os.close(sandbox.pidfd)
        destroy_sandbox(directory, pause_pid=sandbox.pause_pid)


def test_the_pause_process(tmp_path: Path) -> None:
    import select
    import signal

    sandbox = create_sandbox(str(tmp_path / "ns"), ["ipc"], pause=True)
    with open(f"/proc/{sandbox.pause_pid}/cmdline") as file:
        assert file.read() == "/pause\0"
    assert os.listdir(f"/proc/{sandbox.pause_pid}/root") == []
    with open(f"/proc/{sandbox.pause_pid}/status") as status:
        fields = dict(line.split(":", 1) for line in status.read().splitlines())
    assert fields["Uid"].split() == ["65535"] * 4
    assert fields["CapBnd"].strip() == "0" * 16
    # From outside its namespace, as an engine would stop it.
    signal.pidfd_send_signal(sandbox.pidfd, signal.SIGTERM)
    poll = select.poll()
    poll.register(sandbox.pidfd, select.POLLIN)
    assert poll.poll(5000)
    os.close(sandbox.pidfd)
    destroy_sandbox(str(tmp_path / "ns"), pause_pid=sandbox.pause_pid)
    assert not (tmp_path / "ns").exists()
    destroy_sandbox(str(tmp_path / "ns"))
