"""Groups made and removed by systemd, as transient scopes, for machines on which systemd owns the tree.

On cgroup v2 a tree has one writer (systemd's "Control Group APIs and Delegation"): on a machine of systemd's a group
that systemd does not know of may be emptied or limited anew whenever it reloads. So it makes the scope, delegated,
and is told each limit that it has a name for; the rest is written into the files, as without it.

A scope cannot be without a process. Until the container's init is there a placeholder holds it: a forked child that
does nothing and ends when the object that made it goes.
"""

# ruff: noqa: D102 - what each method promises is said once, in Group

from __future__ import annotations

import os

from sampan.cgroup import hierarchy
from sampan.cgroup.group import SIGKILL, Group, Joiner
from sampan.cgroup.systemd_properties import device_properties, properties
from sampan.errors import InvalidInput, SampanError, StageFailed, TimedOut, Unavailable, Unsupported
from sampan.linux.process import close_range

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.cgroup.oom import OomWatch
    from sampan.cgroup.usage import Meter

#: Seconds that systemd may take for a job.
_PATIENCE = 30.0
_DEFAULT_SLICE = "system.slice"


class SystemdPath:
    """``slice:prefix:name`` taken apart.

    Args:
        text: As in ``linux.cgroupsPath`` with ``--systemd-cgroup``; an empty slice is ``system.slice``.
    """

    __slots__ = ("cgroup", "slice", "unit")

    def __init__(self, text: str) -> None:
        parts = text.split(":")
        if len(parts) != 3 or not parts[2] or any("/" in part or "\0" in part for part in parts):
            raise InvalidInput(f"{text!r} is not of the form slice:prefix:name", field="linux.cgroupsPath")
        self.slice = parts[0] or _DEFAULT_SLICE
        prefix, name = parts[1:]
        self.unit = name if name.endswith(".slice") else f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
        self.cgroup = f"{expand_slice(self.slice).rstrip('/')}/{self.unit}"


def expand_slice(name: str) -> str:
    """The cgroup path of a slice: ``a-b.slice`` is ``/a.slice/a-b.slice`` (systemd.slice(5))."""
    if name == "-.slice":
        return "/"
    stem = name.removesuffix(".slice")
    parts = stem.split("-")
    if stem == name or not all(parts):
        raise InvalidInput(f"{name!r} is no slice", field="linux.cgroupsPath")
    return "".join(f"/{'-'.join(parts[: count + 1])}.slice" for count in range(len(parts)))


class SystemdGroup(Group):
    """A scope. See :class:`~sampan.cgroup.group.Group`."""

    __slots__ = ("_holder", "_inner", "_limits", "_owner", "_pid", "_unit")

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._unit = SystemdPath(path)
        self._limits: dict[str, Any] = {}
        self._holder = -1
        self._owner = 0
        self._pid = 0
        self._inner = _file_group(self._unit.cgroup)

    def paths(self) -> dict[str, str]:
        return self._inner.paths()

    def exists(self) -> bool:
        return self._inner.exists()

    def create(self) -> None:
        if self._exists_in_systemd():
            return
        pid = self._hold()
        try:
            with _Systemd() as systemd:
                systemd.start_scope(self._unit.unit, _scope_properties(self._unit, pid))
            self._inner.create()  # on v1 systemd makes its own hierarchy's group only
            if hierarchy.layout().mode != "v2":
                self._inner.join(pid)
        except BaseException:
            self.close()
            raise

    def _exists_in_systemd(self) -> bool:
        layout = hierarchy.layout()
        point = layout.unified if layout.mode == "v2" else layout.controllers.get("name=systemd", layout.unified)
        return os.path.isdir(point + self._unit.cgroup)

    def _hold(self) -> int:
        """Fork the placeholder; it ends when told to through a pipe, or when nobody is left who could."""
        readable, self._holder = os.pipe()
        self._owner = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                os.dup2(readable, 0)
                close_range(1)
                os.read(0, 1)
            finally:
                os._exit(0)
        os.close(readable)
        self._pid = pid
        return pid

    def close(self) -> None:
        if self._holder < 0:
            return
        # A child that was forked meanwhile, the container's init for one, has the pipe too: so a byte, not its end.
        if os.getpid() == self._owner:
            try:
                os.write(self._holder, b"!")
            except OSError:
                pass  # it has ended already
            try:
                os.waitpid(self._pid, 0)
            except ChildProcessError:
                pass  # whoever collects all children of this process was faster
        os.close(self._holder)
        self._holder = -1

    def __del__(self) -> None:
        self.close()

    def join(self, pid: int = 0) -> None:
        self._inner.join(pid)
        self.close()

    def joiner(self, below: dict[str, str] | None = None) -> Joiner:
        return self._inner.joiner(below)

    def fd(self) -> int:
        return self._inner.fd()

    def set(self, resources: dict[str, Any], *, undo: bool = False) -> None:
        v2 = hierarchy.layout().mode == "v2"
        if v2:
            from sampan.cgroup.v2_limits import check

            # Before systemd is told: it writes what it is told, and the kernel kills to get below a limit.
            check(self._inner.paths()[""], resources)
        if found := properties(resources, v2=v2):
            with _Systemd() as systemd:
                systemd.set_properties(self._unit.unit, found)
        # systemd rounds, and does not know every limit.
        self._inner.set(resources, undo=undo)
        self._limits = resources

    def set_devices(self, rules: list[dict[str, Any]]) -> None:
        with _Systemd() as systemd:
            systemd.set_properties(self._unit.unit, device_properties(rules))
        self._inner.set_devices(rules)
        # Whatever systemd is told, it writes all that it knows anew, rounded.
        if self._limits:
            self._inner.set(self._limits)

    def delegate(self, uid: int) -> None:
        self._inner.delegate(uid)

    def stats(self) -> dict[str, Any]:
        return self._inner.stats()

    def freeze(self) -> None:
        self._inner.freeze()

    def thaw(self) -> None:
        self._inner.thaw()

    def frozen(self) -> bool:
        return self._inner.frozen()

    def freezer_file(self) -> tuple[str, str]:
        return self._inner.freezer_file()

    def kill(self, signal: int = SIGKILL) -> None:
        self._inner.kill(signal)

    def pids(self, all: bool = True) -> list[int]:
        return self._inner.pids(all)

    def remove(self) -> None:
        self.close()
        # A scope ends by itself with its last process, and is forgotten even if it failed.
        if self._exists_in_systemd():
            with _Systemd() as systemd:
                systemd.stop(self._unit.unit)
        self._inner.remove()

    def oom_kills(self) -> int:
        return self._inner.oom_kills()

    def oom_watch(self) -> OomWatch:
        return self._inner.oom_watch()

    def meter(self) -> Meter:
        return self._inner.meter()

    def memory_usage(self) -> int:
        return self._inner.memory_usage()

    def memory_working_set(self) -> int:
        return self._inner.memory_working_set()


def _file_group(path: str) -> Group:
    if hierarchy.layout().mode == "v2":
        from sampan.cgroup.v2 import GroupV2

        return GroupV2(path)
    from sampan.cgroup.v1 import GroupV1

    return GroupV1(path)


def _scope_properties(unit: SystemdPath, pid: int) -> list[tuple[str, tuple[str, Any]]]:
    return [
        ("Description", ("s", f"container {unit.unit}")),
        ("Slice", ("s", unit.slice)),
        ("PIDs", ("au", [pid])),
        ("Delegate", ("b", True)),
        ("DefaultDependencies", ("b", False)),
        # One whose process was killed for want of memory has failed, and would otherwise keep its name.
        ("CollectMode", ("s", "inactive-or-failed")),
        # systemd's own default is a share of all that the machine may have; no limit was asked for yet.
        ("TasksMax", ("t", 2**64 - 1)),
        *((f"{name}Accounting", ("b", True)) for name in ("CPU", "Memory", "IO", "Tasks")),
    ]


class _Systemd:
    """A connection to systemd on the system bus, for one or two calls."""

    __slots__ = ("_connection",)

    def __init__(self) -> None:
        try:
            from jeepney.io.blocking import open_dbus_connection
        except ImportError:
            raise Unsupported("the systemd cgroup driver needs the package jeepney") from None
        try:
            self._connection = open_dbus_connection(bus="SYSTEM", auth_timeout=_PATIENCE)
        except (OSError, KeyError) as error:
            raise Unavailable(
                f"systemd cannot be reached on the system bus: {error}", hint="run without --systemd-cgroup"
            ) from error

    def __enter__(self) -> _Systemd:  # noqa: PYI034 - typing is 10 ms
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def start_scope(self, unit: str, wanted: list[tuple[str, tuple[str, Any]]]) -> None:
        """Start a transient unit and wait until it is there."""
        self._job(unit, "start", "StartTransientUnit", "ssa(sv)a(sa(sv))", (unit, "replace", wanted, []))

    def stop(self, unit: str) -> None:
        """Stop a unit; one that systemd does not know is no error."""
        try:
            self._job(unit, "stop", "StopUnit", "ss", (unit, "replace"))
        except _NoSuchUnit:
            return
        try:
            self._call("ResetFailedUnit", "s", (unit,))
        except _NoSuchUnit:
            pass  # it did not fail

    def set_properties(self, unit: str, wanted: list[tuple[str, tuple[str, Any]]]) -> None:
        """Change limits of a running unit until the next boot, and wait until the group has them."""
        self._call("SetUnitProperties", "sba(sv)", (unit, True, wanted))
        # It writes into the group once it has answered, and before it looks at another call.
        self._call("GetUnit", "s", (unit,))

    def _call(self, method: str, signature: str, body: tuple[Any, ...]) -> Any:
        from jeepney import DBusAddress, MessageType, new_method_call

        manager = DBusAddress(
            "/org/freedesktop/systemd1", "org.freedesktop.systemd1", "org.freedesktop.systemd1.Manager"
        )
        try:
            reply = self._connection.send_and_get_reply(
                new_method_call(manager, method, signature, body), timeout=_PATIENCE
            )
        except TimeoutError:
            raise TimedOut(f"systemd did not answer {method} in {_PATIENCE:.0f} s") from None
        except OSError as error:
            raise StageFailed(f"call systemd's {method}", error) from error
        if reply.header.message_type == MessageType.error:
            name = reply.header.fields.get(4, "")  # HeaderFields.error_name
            if name == "org.freedesktop.systemd1.NoSuchUnit":
                raise _NoSuchUnit(name)
            raise SampanError(f"systemd refused {method}: {reply.body[0] if reply.body else name}")
        return reply.body

    def _job(self, unit: str, what: str, method: str, signature: str, body: tuple[Any, ...]) -> None:
        """Make a call that starts a job, and wait for the job's end."""
        from jeepney import MatchRule, message_bus

        rule = MatchRule(
            type="signal",
            interface="org.freedesktop.systemd1.Manager",
            member="JobRemoved",
            path="/org/freedesktop/systemd1",
        )
        self._connection.send_and_get_reply(message_bus.AddMatch(rule), timeout=_PATIENCE)
        self._call_nothing("Subscribe")
        with self._connection.filter(rule, bufsize=64) as queue:
            job = self._call(method, signature, body)[0]
            while True:
                try:
                    message = self._connection.recv_until_filtered(queue, timeout=_PATIENCE)
                except TimeoutError:
                    raise TimedOut(f"systemd did not {what} {unit} in {_PATIENCE:.0f} s") from None
                if message.body[1] == job:
                    break
        if message.body[3] != "done":
            raise SampanError(f"systemd did not {what} {unit}: {message.body[3]}")

    def _call_nothing(self, method: str) -> None:
        try:
            self._call(method, "", ())
        except SampanError:
            pass  # already subscribed


class _NoSuchUnit(SampanError):
    """The unit is not loaded."""
