"""Freezing a container into files, and making it again from them, by criu's command line.

What of a container's mounts comes from outside is told to criu by name when it dumps, and given back under that name
when it restores: bind mounts, the container's control groups, and the null device over masked files. criu is run in
the container's control group, whose processes inherit it; so ``--manage-cgroups-mode`` says only what it stores.
Terminals are not carried over: criu hands them back only to those that speak its RPC.
"""

from __future__ import annotations

import os

from sampan.cgroup import open_group
from sampan.errors import InvalidInput, StageFailed, Unsupported, WrongState
from sampan.linux import mount as m
from sampan.runtime import trace
from sampan.runtime.state import dumps, loads, start_time
from sampan.spec import mount_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.cgroup import Joiner
    from sampan.runtime.handler import Stdio
    from sampan.runtime.state import StateDir
    from sampan.spec.runtime_types import RuntimeConfig

MODES = ("soft", "full", "strict", "ignore")
#: What the standard streams were, for the restore to put others in their place.
_STREAMS = "descriptors.json"
_LOG_TAIL = 1 << 16
#: Where criu finds the descriptors that take the place of the streams.
_FIRST_STREAM = 100


class Options:
    """How a container is dumped or restored; the names are runc's.

    Attributes:
        image_path: Directory of the image files.
        work_path: Directory of criu's log; the image directory when empty.
        parent_path: Directory of an earlier pre-dump, relative to the image directory.
        leave_running: Let the container go on after the dump.
        tcp_established: Take open TCP connections along.
        tcp_skip_in_flight: Leave out TCP connections that are being made.
        link_remap: Give files that were unlinked a name for the time of the image, where possible.
        ext_unix_sk: Take connections to unix sockets outside along.
        shell_job: The container belongs to a session outside.
        file_locks: Take file locks along.
        pre_dump: Copy the memory only, and let the container go on.
        manage_cgroups: What criu stores of the control groups: one of :data:`MODES`.
        empty_ns: Namespaces that are made anew without what was in them; criu knows ``network``.
        auto_dedup: Drop pages of earlier images that later ones hold.
        lsm_profile: TYPE:NAME of the security profile that a restored container gets.
        lsm_mount_context: SELinux label that its mounts get.
        criu: The program; found in PATH when empty.
    """

    __slots__ = (
        "auto_dedup",
        "criu",
        "empty_ns",
        "ext_unix_sk",
        "file_locks",
        "image_path",
        "leave_running",
        "link_remap",
        "lsm_mount_context",
        "lsm_profile",
        "manage_cgroups",
        "parent_path",
        "pre_dump",
        "shell_job",
        "tcp_established",
        "tcp_skip_in_flight",
        "work_path",
    )

    def __init__(self, image_path: str, **others: Any) -> None:
        self.image_path = os.path.abspath(image_path)
        self.work_path: str = others.pop("work_path", "")
        self.parent_path: str = others.pop("parent_path", "")
        self.manage_cgroups: str = others.pop("manage_cgroups", "") or "soft"
        self.empty_ns: tuple[str, ...] = others.pop("empty_ns", ())
        self.lsm_profile: str = others.pop("lsm_profile", "")
        self.lsm_mount_context: str = others.pop("lsm_mount_context", "")
        self.criu: str = others.pop("criu", "")
        self.leave_running: bool = others.pop("leave_running", False)
        self.pre_dump: bool = others.pop("pre_dump", False)
        self.tcp_established: bool = others.pop("tcp_established", False)
        self.tcp_skip_in_flight: bool = others.pop("tcp_skip_in_flight", False)
        self.link_remap: bool = others.pop("link_remap", False)
        self.ext_unix_sk: bool = others.pop("ext_unix_sk", False)
        self.shell_job: bool = others.pop("shell_job", False)
        self.file_locks: bool = others.pop("file_locks", False)
        self.auto_dedup: bool = others.pop("auto_dedup", False)
        if others:
            raise TypeError(f"unknown options: {sorted(others)}")
        if self.manage_cgroups not in MODES:
            raise InvalidInput(f"{self.manage_cgroups!r} is none of {', '.join(MODES)}", field="manage-cgroups-mode")
        for kind in self.empty_ns:
            if kind != "network":
                raise InvalidInput(f"{kind!r}: criu leaves only the network namespace empty", field="empty-ns")

    def common(self) -> list[str]:
        """The arguments that a dump and a restore share."""
        work = os.path.abspath(self.work_path) if self.work_path else self.image_path
        found = ["--images-dir", self.image_path, "--work-dir", work]
        flags = ("tcp_established", "ext_unix_sk", "shell_job", "file_locks", "auto_dedup")
        found += [f"--{name.replace('_', '-')}" for name in flags if getattr(self, name)]
        return found + [argument for _ in self.empty_ns for argument in ("--empty-ns", "net")]


def find_criu(chosen: str) -> str:
    """The path of criu.

    Raises:
        Unsupported: It is not installed, or says itself that it does not work with this kernel.
    """
    places = [chosen] if chosen else [f"{one}/criu" for one in (os.environ.get("PATH") or "").split(":") if one]
    path = next((one for one in places if os.access(one, os.X_OK) and not os.path.isdir(one)), "")
    if not path:
        raise Unsupported("checkpoint and restore need criu, which is not installed", hint="install criu")
    trace.step("check criu", path)
    code, said = _run([path, "check"], None, [])
    if code != 0:
        reason = said.strip().splitlines()[:1]
        raise Unsupported(
            f"criu does not work on this machine: {reason[0] if reason else f'exit status {code}'}",
            hint="criu check says more; a newer criu may know this kernel",
        )
    return path


def dump(directory: StateDir, record: dict[str, Any], options: Options) -> None:
    """Write a running container's state into files; it has ended then, unless it is to go on.

    Raises:
        WrongState: It does not run.
        Unsupported: There is no criu that works, or the container has what can't be carried over.
        StageFailed: criu failed; its last error is in it, and the container goes on.
    """
    pid = record["pid"]
    if not pid or start_time(pid) != record["start"]:
        raise WrongState(f"container {directory.container_id!r} is not running")
    criu = find_criu(options.criu)
    config: RuntimeConfig = directory.load("config.json")  # type: ignore[assignment]
    _refuse_terminal(config)
    os.makedirs(options.image_path, 0o700, exist_ok=True)
    arguments = [criu, "pre-dump" if options.pre_dump else "dump", "--tree", str(pid), *options.common()]
    arguments += ["--log-file", "dump.log", "-v4", "--root", record["rootfs"]]
    arguments += ["--manage-cgroups=" + options.manage_cgroups]
    group = open_group(record["cgroup"], systemd=record["systemd"])
    if freezer := _freezer(group.paths()):
        arguments += ["--freeze-cgroup", freezer]
    if options.parent_path:
        arguments += ["--prev-images-dir", options.parent_path]
    if options.parent_path or options.pre_dump:
        arguments.append("--track-mem")
    if options.leave_running:
        arguments.append("--leave-running")
    if options.tcp_skip_in_flight:
        arguments.append("--skip-in-flight")
    if options.link_remap:
        arguments.append("--link-remap")
    for place, _ in _outside(config, record["bundle"], group.paths()):
        arguments += ["--external", f"mnt[{place}]:{place}"]
    _refuse_joined_network(config, options)
    _note_streams(pid, options.image_path)
    trace.step("checkpoint container", options.image_path)
    _must_run("checkpoint", arguments, options, "dump.log")


def restore(
    directory: StateDir, record: dict[str, Any], config: RuntimeConfig, stdio: Stdio, options: Options
) -> tuple[int, int]:
    """Make a container's processes from files; the caller has made its directory and its control group.

    Returns:
        The init's pid, a child of ours, and its start time.

    Raises:
        Unsupported: There is no criu that works, or the container has a terminal.
        StageFailed: criu failed; its last error is in it.
    """
    criu = find_criu(options.criu)
    _refuse_terminal(config)
    group = open_group(record["cgroup"], systemd=record["systemd"])
    pid_file = directory.file("restored.pid")
    arguments = [criu, "restore", *options.common(), "--log-file", "restore.log", "-v4"]
    arguments += ["--restore-detached", "--restore-sibling", "--pidfile", pid_file, "--manage-cgroups=ignore"]
    for place, source in _outside(config, record["bundle"], group.paths()):
        arguments += ["--external", f"mnt[{place}]:{source}"]
    if options.lsm_profile:
        arguments += ["--lsm-profile", options.lsm_profile]
    if options.lsm_mount_context:
        arguments += ["--lsm-mount-context", options.lsm_mount_context]
    _refuse_joined_network(config, options)
    streams = _streams(options.image_path, stdio)
    for number, (_, name) in enumerate(streams, _FIRST_STREAM):
        arguments += ["--inherit-fd", f"fd[{number}]:{name}"]
    root = directory.file("root")
    trace.step("bind root", root)
    os.mkdir(root)
    m.mount(record["rootfs"], root, None, m.MS_BIND | m.MS_REC)
    try:
        m.mount(None, root, None, m.MS_PRIVATE | m.MS_REC)
        trace.step("restore container", options.image_path)
        joiner = group.joiner()
        try:
            _must_run("restore", [*arguments, "--root", root], options, "restore.log", joiner, streams)
        finally:
            joiner.close()
    finally:
        m.umount(root, m.MNT_DETACH)
        os.rmdir(root)
    with open(pid_file, encoding="ascii") as file:
        pid = int(file.read())
    directory.unlink("restored.pid")
    return pid, start_time(pid)


def _refuse_terminal(config: RuntimeConfig) -> None:
    if (config.get("process") or {}).get("terminal"):
        raise Unsupported("process.terminal: a container with a terminal can't be checkpointed or restored")


def _outside(config: RuntimeConfig, bundle: str, groups: dict[str, str]) -> list[tuple[str, str]]:
    """What is mounted in the container from outside: destination and source."""
    found = []
    linux = config.get("linux") or {}
    for mount in config.get("mounts") or []:
        place = os.path.normpath(mount["destination"])
        options = mount_options.parse(mount.get("options") or [])
        if options.bind or mount.get("type") == "bind":
            found.append((place, os.path.join(bundle, mount.get("source") or "")))
        elif mount.get("type") == "cgroup":
            found += [(f"{place}/{name}" if name else place, path) for path, name in _group_mounts(groups)]
    root = os.path.join(bundle, config["root"]["path"])
    found += [(path, "/dev/null") for path in linux.get("maskedPaths") or [] if _is_masked_file(root, path)]
    if any(one["type"] == "user" for one in linux.get("namespaces") or []):
        found += [(f"/dev/{name}", f"/dev/{name}") for name in ("null", "zero", "full", "random", "urandom", "tty")]
    return found


def _group_mounts(groups: dict[str, str]) -> list[tuple[str, str]]:
    """The directories that a cgroup mount shows, and their names in it (:mod:`sampan.runtime.cgroup_mount`)."""
    named: dict[str, list[str]] = {}
    for controller, directory in groups.items():
        named.setdefault(directory, []).append(controller.removeprefix("name="))
    return [(path, ",".join(names)) for path, names in named.items() if names != [""] or len(named) == 1]


def _is_masked_file(root: str, path: str) -> bool:
    # Files of procfs and sysfs look the same from here; others are the root's.
    outside = path if path.startswith(("/proc/", "/sys/")) else root + path
    return os.path.lexists(outside) and not os.path.isdir(outside)


def _freezer(groups: dict[str, str]) -> str:
    # Under v2 the group's own directory has the freezer's files; a hybrid machine's unified one is not joined.
    return groups.get("freezer") or (groups.get("", "") if len(groups) == 1 else "")


def _refuse_joined_network(config: RuntimeConfig, options: Options) -> None:
    """A network namespace that was joined by path is its owner's."""
    for one in (config.get("linux") or {}).get("namespaces") or []:
        if one["type"] == "network" and one.get("path") and not options.empty_ns:
            raise Unsupported("linux.namespaces: a joined network namespace is not carried over", hint="use empty-ns")


def _note_streams(pid: int, folder: str) -> None:
    names = [os.readlink(f"/proc/{pid}/fd/{number}") if _is_open(pid, number) else "" for number in range(3)]
    with open(f"{folder}/{_STREAMS}", "wb") as file:
        file.write(dumps(names))


def _is_open(pid: int, number: int) -> bool:
    return os.path.lexists(f"/proc/{pid}/fd/{number}")


def _streams(folder: str, stdio: Stdio) -> list[tuple[int, str]]:
    """Our descriptors in the place of pipes that led outside: descriptor and criu's name of the pipe."""
    try:
        with open(f"{folder}/{_STREAMS}", "rb") as file:
            names = loads(file.read(_LOG_TAIL))
    except (FileNotFoundError, ValueError):
        return []
    given = (stdio.stdin, stdio.stdout, stdio.stderr)
    found: dict[str, int] = {}
    for fd, name in zip(given, names if isinstance(names, list) else [], strict=False):
        if fd >= 0 and isinstance(name, str) and name.startswith("pipe:"):
            found.setdefault(name, fd)
    return [(fd, name) for name, fd in found.items()]


def _must_run(
    what: str,
    arguments: list[str],
    options: Options,
    log: str,
    joiner: Joiner | None = None,
    streams: list[tuple[int, str]] | None = None,
) -> None:
    code, said = _run(arguments, joiner, streams or [])
    if code != 0:
        work = os.path.abspath(options.work_path) if options.work_path else options.image_path
        path = f"{work}/{log}"
        raise StageFailed(what, OSError(0, _last_error(path) or said.strip() or f"criu: exit status {code}"), path=path)


def _last_error(path: str) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - _LOG_TAIL))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    errors = [line.partition("Error ")[2] for line in lines if "Error (" in line]
    # The very last says that it failed, the one before why.
    telling = [one for one in errors if not one.endswith("FAILED.")] or errors
    return f"criu: {telling[-1]}" if telling else ""


def _run(arguments: list[str], joiner: Joiner | None, streams: list[tuple[int, str]]) -> tuple[int, str]:
    """Run a program in the group of ``joiner``, with descriptors for its work; its exit status and what it said."""
    output, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            if joiner is not None:
                joiner.enter()
            for number, (fd, _) in enumerate(streams, _FIRST_STREAM):
                os.dup2(fd, number)
            os.dup2(os.open("/dev/null", os.O_RDWR), 0)
            os.dup2(writer, 1)
            os.dup2(writer, 2)
            os.execv(arguments[0], arguments)
        finally:
            os._exit(127)
    os.close(writer)
    said = b""
    # What it leaves running holds no end of the pipe: its streams are its own.
    with open(output, "rb", buffering=0) as pipe:
        while chunk := pipe.read(4096):
            said = (said + chunk)[-_LOG_TAIL:]
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said.decode("utf-8", "replace")
