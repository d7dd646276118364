"""Attacks that once worked on container runtimes, tried on this one. docs/security.md lists each with its defence."""

import os
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tracers
from runtime_bundle import Box

from sampan.errors import InvalidInput, StageFailed
from sampan.linux import apparmor
from sampan.runtime import pause, stage2
from sampan.runtime.handler import Stdio

pytestmark = pytest.mark.root


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path)
    yield made
    made.discard()


def _bind(box: Box, destination: str, source: Path | str, *options: str) -> None:
    box.config["mounts"].append(
        {"destination": destination, "source": str(source), "type": "bind", "options": ["rbind", *options]}
    )


# /proc/self/exe: CVE-2019-5736


def test_self_exe_is_not_the_hosts_interpreter(box: Box) -> None:
    """An image whose program is a link to /proc/self/exe gets the sealed trampoline, which can't be written."""
    (box.rootfs / "bin" / "evil").symlink_to("/proc/self/exe")
    created = box.create("evil")
    # Executed again with the program's arguments taken for its own, the trampoline can't do anything useful.
    box.handler.start(box.container_id)
    assert os.waitstatus_to_exitcode(os.waitpid(created.pid, 0)[1]) != 0


@pytest.mark.parametrize("program", ["trampoline", "pause"])
def test_programs_that_containers_share_cannot_be_changed(box: Box, program: str) -> None:
    """Nor their mode, by which whoever can open one would end every other container that is to start from it."""
    shared = stage2.program() if program == "trampoline" else pause.program()
    created = box.create("sleep", "100")
    nobody = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, 0, 0xFFFFFFFF) for tag in (1, 4, 0x20))
    for path in (f"/proc/{created.pid}/exe", f"/proc/self/fd/{shared}"):
        opened = os.open(path, os.O_RDONLY)
        changes: list[Callable[[], object]] = [
            lambda path=path: os.open(path, os.O_RDWR),  # type: ignore[misc]
            lambda path=path: os.truncate(path, 0),  # type: ignore[misc]
            lambda: os.fchmod(opened, 0),  # noqa: B023
            lambda: os.fchown(opened, 1, 1),  # noqa: B023
            lambda: os.setxattr(opened, "system.posix_acl_access", nobody),  # noqa: B023
            lambda: os.setxattr(opened, "security.capability", b""),  # noqa: B023
        ]
        for change in changes:
            with pytest.raises(OSError, match=r"Read-only file system|Text file busy"):
                change()
        os.close(opened)
    box.discard(created)


def test_exec_runs_no_interpreter_in_the_container(box: Box) -> None:
    (box.rootfs / "bin" / "evil").symlink_to("/proc/self/exe")
    created = box.create("sleep", "100")
    box.handler.start(box.container_id)
    ended = box.exec("readlink", "/proc/self/exe")
    assert ended.output == "/bin/busybox\n"
    assert box.exec("evil").status != 0
    box.discard(created)


# procfs and sysfs mounts redirected: CVE-2019-16884, CVE-2019-19921, CVE-2023-27561, CVE-2023-28642


@pytest.mark.parametrize("path", ["/proc", "/sys"])
def test_proc_and_sys_are_not_mounted_through_symlinks(box: Box, path: str) -> None:
    (box.rootfs / "elsewhere").mkdir()
    (box.rootfs / path[1:]).symlink_to("elsewhere")
    with pytest.raises(StageFailed, match=f"at {path}: ELOOP"):
        box.create("true")


@pytest.mark.parametrize(
    "destination", ["/proc/self/attr", "/proc/1", "/proc/sys", "/proc/irq", "/proc/../proc/self/fd"]
)
def test_volumes_do_not_go_inside_proc(box: Box, tmp_path: Path, destination: str) -> None:
    _bind(box, destination, tmp_path)
    with pytest.raises(StageFailed, match="a mount inside /proc is refused"):
        box.create("true")


def test_a_volume_does_not_reach_proc_through_a_symlink(box: Box, tmp_path: Path) -> None:
    (box.rootfs / "innocent").symlink_to("/proc/self")
    _bind(box, "/innocent/attr", tmp_path)
    with pytest.raises(StageFailed, match=r"refused|ELOOP"):
        box.create("true")


def test_a_volume_over_the_whole_of_proc_is_no_procfs(
    box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels are written to what is checked to be procfs, sysctls through the host's own."""
    (tmp_path / "fake" / "self" / "attr").mkdir(parents=True)
    (tmp_path / "fake" / "thread-self" / "attr").mkdir(parents=True)
    (tmp_path / "fake" / "thread-self" / "attr" / "exec").touch()
    box.config["mounts"] = [one for one in box.config["mounts"] if one["destination"] != "/proc"]
    _bind(box, "/proc", tmp_path / "fake")
    box.process["apparmorProfile"] = "x"
    # As if the kernel had AppArmor: it is the check on the descriptor that is tried here.
    monkeypatch.setattr(apparmor, "enabled", lambda: True)
    with pytest.raises(StageFailed, match="set AppArmor profile"):
        box.create("true")
    assert (tmp_path / "fake" / "thread-self" / "attr" / "exec").read_text() == ""


def test_lxcfs_files_may_be_bound(box: Box, tmp_path: Path) -> None:
    (tmp_path / "uptime").write_text("1.00 1.00\n")
    _bind(box, "/proc/uptime", tmp_path / "uptime")
    assert box.sh("cat /proc/uptime") == "1.00 1.00"


def test_sysctls_are_not_redirected_by_a_fake_proc_sys(box: Box, tmp_path: Path) -> None:
    """CVE-2025-52881: what is mounted at /proc must not take the runtime's writes."""
    fake = tmp_path / "fake" / "sys" / "net" / "ipv4"
    fake.mkdir(parents=True)
    (fake / "ip_forward").write_text("untouched")
    box.config["mounts"] = [one for one in box.config["mounts"] if one["destination"] != "/proc"]
    _bind(box, "/proc", tmp_path / "fake")
    box.linux["sysctl"] = {"net.ipv4.ip_forward": "1"}
    assert box.run("cat", "/proc/sys/net/ipv4/ip_forward").output == "untouched"


# masked paths: CVE-2025-31133


def test_masks_use_the_real_null_device(box: Box) -> None:
    """An image or a mount that makes /dev/null a link to a secret gets no window onto it."""
    box.config["mounts"] = [one for one in box.config["mounts"] if not one["destination"].startswith("/dev")]
    (box.rootfs / "dev").mkdir()
    (box.rootfs / "dev" / "null").symlink_to("/proc/sysrq-trigger")
    (box.rootfs / "etc" / "secret").write_text("secret")
    box.linux["maskedPaths"] = ["/etc/secret"]
    with pytest.raises(StageFailed, match="make default devices"):
        box.create("true")
    (box.rootfs / "dev" / "null").unlink()
    box.linux["devices"] = [{"type": "c", "path": "/dev/null", "major": 1, "minor": 5}]
    assert box.sh("stat -c %t:%T /dev/null /etc/secret").split() == ["1:5", "1:3"]


@pytest.mark.parametrize("destination", ["/agent/proc/self", "/agent/proc/sys", "/link/self"])
def test_a_procfs_that_a_volume_brings_may_be_mounted_on_but_not_the_containers(box: Box, destination: str) -> None:
    """Agents have the machine's root at one place, and more of it over that."""
    (box.rootfs / "link").symlink_to("proc")
    box.config["mounts"] += [
        {"destination": "/agent/proc", "type": "bind", "source": "/proc", "options": ["rbind", "ro"]},
        {"destination": destination, "type": "bind", "source": str(box.directory / "over"), "options": ["bind"]},
    ]
    (box.directory / "over").mkdir()
    (box.directory / "over" / "mark").touch()
    if destination.startswith("/link"):
        with pytest.raises(StageFailed, match="a mount inside /proc is refused"):
            box.create("true")
        return
    if destination.endswith("self"):
        # By the number of whoever makes the mount: not for anybody to look for.
        box.config["mounts"][-1]["destination"] = "/agent/proc/1"
    assert box.sh(f"ls {box.config['mounts'][-1]['destination']}; ls -d /proc/1/attr") == "mark\n/proc/1/attr"


# the terminal: CVE-2025-52565


@pytest.mark.parametrize("kind", ["file", "zero", "ptmx"])
def test_what_an_image_has_for_a_multiplexer_is_none(box: Box, kind: str) -> None:
    box.process["terminal"] = True
    box.config["mounts"] = [one for one in box.config["mounts"] if not one["destination"].startswith("/dev")]
    planted = box.rootfs / "dev" / "pts" / "ptmx"
    planted.parent.mkdir(parents=True)
    if kind == "file":
        planted.write_text("not a terminal")
    else:
        os.mknod(planted, 0o666 | stat.S_IFCHR, os.makedev(*((1, 5) if kind == "zero" else (5, 2))))
    with pytest.raises(StageFailed, match="open terminal" if kind == "ptmx" else "not a pty multiplexer"):
        box.create("true")


@pytest.mark.parametrize("link", ["/proc/self/attr/exec", "/proc/sysrq-trigger", "../etc/passwd"])
def test_the_console_does_not_go_through_a_link(box: Box, link: str) -> None:
    """Over what the runtime writes to, or the masks hide, a terminal would take their place."""
    box.process["terminal"] = True
    box.config["mounts"] = [one for one in box.config["mounts"] if one["destination"] != "/dev"]
    (box.rootfs / "dev").mkdir(exist_ok=True)
    (box.rootfs / "dev" / "console").symlink_to(link)
    with pytest.raises(StageFailed, match="bind console at /dev/console: ELOOP"):
        box.create("true")
    (box.rootfs / "dev" / "console").unlink()
    created = box.create("true")
    box.discard(created)


# destinations swapped while they are mounted: CVE-2021-30465


def test_a_destination_that_is_swapped_stays_inside(box: Box, tmp_path: Path) -> None:
    """One thread swaps the destination with a link to the outside while containers are made."""
    target = tmp_path / "outside"
    target.mkdir()
    source = tmp_path / "source"
    source.mkdir()
    (source / "marker").touch()
    place = box.rootfs / "mnt" / "place"
    place.mkdir(parents=True)
    link = box.rootfs / "mnt" / "link"
    link.symlink_to("../" * 20 + str(target))

    def swap() -> None:
        import ctypes

        libc = ctypes.CDLL(None)
        while True:
            libc.renameat2(-100, os.fsencode(place), -100, os.fsencode(link), 2)

    _bind(box, "/mnt/place", source)
    # A process of its own swaps: the runtime forks, and must be alone in its process.
    pid = os.fork()
    if pid == 0:
        try:
            swap()
        finally:
            os._exit(0)
    try:
        seen = 0
        for _ in range(40):
            try:
                created = box.create("true")
            except StageFailed:
                continue
            with open(f"/proc/{created.pid}/mountinfo") as file:
                points = [line.split()[4] for line in file if "source" in line.split()[3]]
            seen += len(points)
            assert len(points) == 1, points
            box.discard(created)
            assert not (target / "marker").exists()
        assert seen
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


# leaked descriptors and working directories: CVE-2024-21626


@pytest.mark.parametrize("number", range(3, 12))
def test_no_descriptor_of_the_runtime_is_a_working_directory(box: Box, number: int) -> None:
    box.process["cwd"] = f"/proc/self/fd/{number}"
    with pytest.raises(StageFailed, match="change directory"):
        box.create("pwd")


def test_a_descriptor_of_the_caller_does_not_leak(box: Box) -> None:
    fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(fd, True)
    try:
        created = box.create("sleep", "100")
        box.handler.start(box.container_id)
        held = sorted(int(name) for name in os.listdir(f"/proc/{created.pid}/fd"))
        assert held == [0, 1, 2]
        inside = box.handler.exec(box.container_id, {**box.process, "args": ["sleep", "100"]}, Stdio())
        assert sorted(int(name) for name in os.listdir(f"/proc/{inside.pid}/fd")) == [0, 1, 2]
        box.handler.kill(box.container_id, 9)
        os.waitpid(inside.pid, 0)
        box.discard(created)
    finally:
        os.close(fd)


def test_exec_through_a_link_to_a_descriptor_finds_nothing(box: Box) -> None:
    created = box.create("sleep", "100")
    box.handler.start(box.container_id)
    for number in range(3, 10):
        with pytest.raises(StageFailed, match="change directory"):
            box.handler.exec(
                box.container_id, {**box.process, "args": ["pwd"], "cwd": f"/proc/self/fd/{number}"}, Stdio()
            )
    box.discard(created)


# Inheritable capabilities (CVE-2022-29162).


def test_exec_gives_no_inheritable_capabilities(box: Box) -> None:
    created = box.create("sleep", "100")
    box.handler.start(box.container_id)
    said = box.exec("grep", "-E", "CapInh|CapAmb", "/proc/self/status").output
    assert said.split() == ["CapInh:", "0" * 16, "CapAmb:", "0" * 16]
    box.discard(created)


# cgroups in user namespaces: CVE-2023-25809


def test_cgroups_are_not_writable_from_a_user_namespace(box: Box) -> None:
    mapping = [{"containerID": 0, "hostID": 200000, "size": 65536}]
    box.linux["uidMappings"] = box.linux["gidMappings"] = mapping
    box.linux["namespaces"].append({"type": "user"})
    for path in (box.rootfs, *box.rootfs.rglob("*")):
        os.lchown(path, 200000, 200000)
    box.config["mounts"].append(
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid"]}
    )
    groups = "/sys/fs/cgroup" if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else "/sys/fs/cgroup/pids"
    tried = (f"mkdir {groups}/x", f"echo 1 > {groups}/cgroup.procs", f"mount -o remount,rw,bind {groups}")
    said = box.sh(
        f"test -e {groups}/cgroup.procs; " + "".join(f"if ({one}); then echo {one[:5]}; fi; " for one in tried)
    )
    assert set(said.split()) & {one[:5] for one in tried} == set()
    assert said.count("Read-only file system") >= 1


# directories made outside the root: CVE-2024-45310


def test_missing_directories_are_not_made_outside(box: Box, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (box.rootfs / "out").symlink_to(outside)
    (box.rootfs / "up").symlink_to("../../../../../../../../" + str(outside))
    source = tmp_path / "source"
    source.mkdir()
    _bind(box, "/out/new/deep", source)
    _bind(box, "/up/other", source)
    box.linux["devices"] = [{"type": "c", "path": "/out/dev/null", "major": 1, "minor": 3}]
    box.process["cwd"] = "/up/cwd"
    assert box.sh("pwd") == f"{outside}/cwd"
    assert not outside.exists()
    assert stat.S_ISCHR((box.rootfs / str(outside)[1:] / "dev" / "null").stat().st_mode)


# numbers that overflow: CVE-2024-40635, CVE-2021-43784


@pytest.mark.parametrize("uid", [2**32 - 1, 2**32, -1, 2**31 * 4, 1.5, "0", True])
def test_user_ids_do_not_wrap_to_root(box: Box, uid: Any) -> None:
    box.process["user"] = {"uid": uid, "gid": 0}
    with pytest.raises(InvalidInput, match=r"process\.user\.uid"):
        box.create("true")


def test_the_largest_user_id_is_itself(box: Box) -> None:
    box.process["user"] = {"uid": 2**32 - 2, "gid": 2**32 - 2}
    assert box.sh("grep Uid /proc/self/status").split()[1] == str(2**32 - 2)


@pytest.mark.parametrize(("first", "size"), [(2**32 - 2, 2**32 - 1), (2**32 - 2, 3), (100000, 2**32)])
@pytest.mark.parametrize("kind", ["uidMappings", "gidMappings"])
def test_mappings_do_not_overflow_into_the_hosts_root(box: Box, kind: str, first: int, size: int) -> None:
    box.linux["namespaces"].append({"type": "user"})
    for one in ("uidMappings", "gidMappings"):
        box.linux[one] = [{"containerID": 0, "hostID": 100000, "size": 1}]
    box.linux[kind][0].update(hostID=first, size=size)
    with pytest.raises(InvalidInput) as caught:
        box.create("true")
    assert f"linux.{kind}[0]" in str(caught.value)


# groups that nobody asked for: CVE-2023-25173


def test_only_the_groups_asked_for(box: Box) -> None:
    box.process["user"] = {"uid": 33, "gid": 33, "additionalGids": []}
    os.setgroups([0, 4, 27])
    try:
        assert box.sh("id -G") == "33"
    finally:
        os.setgroups([])


@pytest.mark.parametrize("kind", ["file", "fifo"])
def test_no_file_of_the_image_keeps_the_callers_groups(box: Box, kind: str) -> None:
    box.config["mounts"] = [mount for mount in box.config["mounts"] if mount["destination"] != "/proc"]
    (box.rootfs / "proc/self").mkdir(parents=True)
    if kind == "file":
        (box.rootfs / "proc/self/setgroups").write_text("deny\n")
    else:
        os.mkfifo(box.rootfs / "proc/self/setgroups")
    box.process["user"] = {"uid": 33, "gid": 33}
    os.setgroups([0, 4, 27])
    try:
        assert box.sh("id -G") == "33"
    finally:
        os.setgroups([])


# Between fork and exec.


def _spy(pid: int, mark: str) -> tuple[int, int]:
    """A process of the container that may trace: for each process that comes, what it executes and its root.

    Returns:
        Its pid, and a pipe from which what it saw is read once it is killed: lines of ``exe`` and ``host``.
    """

    def watch(tell: Callable[[], None], writer: int) -> None:
        tell()
        seen = set(os.listdir("/proc"))
        while True:
            for name in os.listdir("/proc"):
                if name in seen or not name.isdigit():
                    continue
                try:
                    exe = os.readlink(f"/proc/{name}/exe")
                    host = os.path.exists(f"/proc/{name}/root{mark}")
                except OSError:
                    continue
                os.write(writer, f"{exe} {'host' if host else ''}\n".encode())

    return tracers.start(pid, watch)


@pytest.mark.slow
def test_who_may_trace_sees_nothing_of_the_host_in_an_exec(box: Box, tmp_path: Path) -> None:
    """With CAP_SYS_PTRACE a process that is not dumpable can be opened all the same: it must be worth nothing."""
    from sampan.linux.syscall import X86_64

    if not X86_64 or apparmor.enabled():
        pytest.skip("the trampoline is for x86-64, and AppArmor keeps tracers away")
    mark = tmp_path / "mark"
    mark.touch()
    for kind in ("bounding", "permitted", "effective"):
        box.process["capabilities"][kind].append("CAP_SYS_PTRACE")
    created = box.create("sleep", "1000")
    box.handler.start(box.container_id)
    # As a monitor's, which is sealed, the interpreter is known by its name: no file of the machine may be seen.
    spy, reader = _spy(created.pid, str(mark))
    try:
        for terminal in (False, True):
            for _ in range(40):
                process = {**box.process, "args": ["sleep", "0.01"], "terminal": terminal}
                one = box.handler.exec(box.container_id, process, Stdio())
                if one.console >= 0:
                    os.close(one.console)
                os.waitpid(one.pid, 0)
    finally:
        box.discard(created)  # which ends the spy with its namespace
        os.waitpid(spy, 0)
    with open(reader) as file:
        lines = file.read().splitlines()
    assert lines
    assert [line for line in lines if line.endswith(" host")] == []


@pytest.mark.slow
def test_the_command_enters_who_may_trace_from_a_sealed_copy(box: Box, tmp_path: Path) -> None:
    import subprocess
    import sys

    for kind in ("bounding", "permitted", "effective"):
        box.process["capabilities"][kind].append("CAP_SYS_PTRACE")
    created = box.create("sleep", "1000")
    box.handler.start(box.container_id)
    spy, reader = _spy(created.pid, str(tmp_path))
    runtime = str(Path(sys.executable).parent / "sampan-runtime")
    try:
        for _ in range(15):
            command = [runtime, "--root", box.handler.root, "exec", box.container_id, "sh", "-c", "sleep 0.05; exit 3"]
            assert subprocess.run(command, check=False).returncode == 3
    finally:
        box.discard(created)
        os.waitpid(spy, 0)
    with open(reader) as file:
        lines = file.read().splitlines()
    assert lines
    assert {line for line in lines if "python" in line or line.endswith(" host")} == set()


def test_nobody_can_look_into_a_process_that_is_being_set_up(box: Box) -> None:
    """Another process of the same user, without CAP_SYS_PTRACE, is kept out: the init is not dumpable."""
    from sampan.runtime import trace

    parent = os.getpid()
    reader, writer = os.pipe()

    def look(name: str) -> None:
        if os.getpid() == parent or name != "set mount propagation":
            return
        init = os.getpid()
        pid = os.fork()
        if pid == 0:
            from sampan.linux import capabilities

            capabilities.set_sets(0, 0, 0)
            try:
                os.readlink(f"/proc/{init}/exe")
                os.write(writer, b"seen")
            except PermissionError:
                os.write(writer, b"shut")
            finally:
                os._exit(0)
        os.waitpid(pid, 0)

    box.linux["namespaces"] = [one for one in box.linux["namespaces"] if one["type"] != "pid"]
    trace.hook = look
    try:
        created = box.create("sleep", "100", stdio=Stdio())
    finally:
        trace.hook = None
        os.close(writer)
    assert os.read(reader, 10) == b"shut"
    os.close(reader)
    box.discard(created)


def test_no_file_of_the_container_is_loaded_by_the_interpreter(box: Box) -> None:
    """The init's interpreter must not import from the container's file system, whatever lies there."""
    import sys

    for directory in {entry for entry in sys.path if entry.startswith("/")}:
        place = box.rootfs / directory[1:]
        if "lib/python" in directory:
            place.mkdir(parents=True, exist_ok=True)
            for name in ("encodings", "codecs", "resource", "stat", "fcntl", "sitecustomize"):
                (place / f"{name}.py").write_text("import os; os.write(1, b'loaded'); os._exit(99)\n")
    ended = box.run("echo", "fine")
    assert (ended.status, ended.output) == (0, "fine\n")
