"""`sampan doctor`: is this machine, as it is configured, one that pods run on; and if not, what is the mend."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import msgspec

from sampan import network
from sampan.daemon import config as configuration
from sampan.daemon import machine
from sampan.daemon.findings import Area, Finding
from sampan.engine.config import HandlerConfig
from sampan.engine.handlers import Features, Handlers
from sampan.errors import SampanError

#: Seconds for a registry's host to take a connection, and for a runtime to say what it can do.
_REACH, _ASK = 3.0, 5.0
#: Free space, in bytes and in parts of the whole, under which a kubelet begins to evict (its nodefs thresholds).
_LITTLE_SPACE, _LITTLE_PART = 2 << 30, 0.10


def examine(
    config_path: str = "", overrides: Mapping[str, object] | None = None, *, online: bool = False
) -> Iterator[Finding]:
    """Look at everything; nothing is changed.

    Args:
        config_path: The daemon's configuration; empty: the default one.
        overrides: Settings that count more, as for :func:`sampan.daemon.config.load`.
        online: Connect to the registries' hosts, too.
    """
    area = Area("configuration")
    try:
        config = configuration.load(config_path, overrides, serving=True)
    except SampanError as error:
        yield area.error("files", str(error), "mend the file; `sampan config default` explains every key")
        config = configuration.Config()
    else:
        yield area.ok("files", ", ".join(configuration.files(config_path)) or "none: the defaults are in force")
    yield from machine.examine(systemd=config.cri.cgroup_driver == "systemd")
    yield from storage(config)
    yield from networks(config)
    yield from registries(config, online=online)
    yield from runtimes(config)
    yield from daemon(config)


def storage(config: configuration.Config) -> Iterator[Finding]:
    """The data root: its snapshotter and its space."""
    area = Area("storage")
    existing = config.root
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    try:
        status = os.statvfs(existing)
    except OSError as error:
        yield area.error("root", f"{existing}: {error.strerror}", "choose another root")
        return
    free = status.f_bavail * status.f_frsize
    part = status.f_bavail / max(1, status.f_blocks)
    said = f"{config.root}: {free / 1e9:.1f} GB free ({part:.0%})"
    if free < _LITTLE_SPACE or part < _LITTLE_PART:
        yield area.warning("space", said, "remove images (`sampan rmi`, `sampan gc`), or choose a larger root")
    else:
        yield area.ok("space", said)
    if status.f_files and status.f_favail < status.f_files // 20:
        yield area.warning("inodes", f"{status.f_favail} free", "remove images, or make the file system with more")
    try:
        with open(f"{config.root}/snapshotter", encoding="ascii") as file:
            chosen = file.read(20).strip()
    except OSError:
        yield area.ok("snapshotter", "not chosen yet: the first start does")
        return
    if chosen == "native":
        yield area.warning(
            "snapshotter",
            "native: every container copies its image's files",
            "a file system that overlayfs takes as its upper layer (ext4, xfs with ftype=1), and a fresh root on it",
        )
    else:
        yield area.ok("snapshotter", chosen)


def networks(config: configuration.Config) -> Iterator[Finding]:
    """CNI: configurations, their plugins, the tools."""
    area = Area("CNI")
    if os.path.isdir(config.root) and not os.access(config.root, os.R_OK | os.W_OK | os.X_OK):
        yield area.warning("networks", "can't be looked at by this user", "run it as root")
        return
    try:
        with _networks(config) as nets:
            for fault in nets.faults():
                yield area.error("configuration", str(fault), "mend the file, or take it out of the folder")
            found = network.status(nets)
            first = nets.default() if found.ready else None
            none = not nets.names() and not nets.faults()
    except (SampanError, OSError) as error:
        yield area.error("networks", str(error), f"see {config.network.conf_dir}")
        return
    if not found.ready:
        mend = "install the plugin, or mend the configuration"
        if none:
            mend = "have the cluster's network write its conflist, or set network.built_in = true"
        yield area.error("default network", found.message, mend)
    elif first is not None:
        where = first.path or f"built in, since {config.network.conf_dir} has none"
        yield area.ok("default network", f"{first.name} ({where})")
    for what, mend in network.obstacles():
        yield area.warning("forwarding", what, f"let the network's bridge through: {mend}")


@contextmanager
def _networks(config: configuration.Config) -> Iterator[network.Networks]:
    """The networks as they are, or as a first start would have them, which is not to be seen of an examination."""
    with ExitStack() as stack:
        state = f"{config.root}/network"
        if not os.path.exists(f"{state}/network.db"):
            state = stack.enter_context(tempfile.TemporaryDirectory(prefix="sampan-doctor-"))
        yield network.load(
            config.network.conf_dir,
            state_dir=state,
            bin_dirs=config.network.plugin_dirs,
            default=config.network.built_in,
        )


def registries(config: configuration.Config, *, online: bool) -> Iterator[Finding]:
    """Each registry host that is configured, and whether it can be reached; and the credentials' files."""
    from sampan.registry.credentials import Chain
    from sampan.registry.hosts import hosts_for

    area = Area("registries")
    domains = {"docker.io"}
    for folder in config.registry.config_path:
        if os.path.isdir(folder):
            domains.update(name for name in os.listdir(folder) if name != "_default")
    for domain in sorted(domains):
        domain = domain[:-1].replace("_", ":") if domain.endswith("_") else domain
        try:
            hosts = hosts_for(domain, config.registry.config_path)
        except SampanError as error:
            yield area.error(domain, str(error), "mend hosts.toml; `sampan registry explain` shows what it leads to")
            continue
        yield area.ok(domain, ", then ".join(host.url for host in hosts))
        for host in hosts if online else ():
            problem = _unreachable(host.name, 443 if host.scheme == "https" else 80)
            if problem:
                yield area.warning(host.name, problem, "check the name, the network and the proxy of this machine")
    try:
        Chain().find("docker.io")
    except SampanError as error:
        yield area.error("credentials", str(error), "mend the file, or install the helper that it names")


def _unreachable(name: str, port: int) -> str:
    host, colon, given = name.rpartition(":")
    if colon and given.isdecimal():
        name, port = host, int(given)
    try:
        socket.create_connection((name.strip("[]"), port), _REACH).close()
    except OSError as error:
        return f"no connection to {name} port {port}: {error}"
    return ""


def runtimes(config: configuration.Config) -> Iterator[Finding]:
    """Each runtime handler."""
    area = Area("runtimes")
    asked = Handlers()
    for name, handler in sorted(config.runtimes.items()):
        found = asked.features(handler, wait=_ASK)
        if handler.type == "external" and shutil.which(handler.binary) is None:
            yield area.error(name, found.problem, f"install it, or take [runtimes.{name}] out of the configuration")
        elif found.problem:
            yield area.warning(name, found.problem, "a newer version says what it can do")
        else:
            yield area.ok(name, describe(handler, found))


def describe(handler: HandlerConfig, features: Features) -> str:
    """A handler in a line."""
    able = [
        text
        for text, there in (
            ("user namespaces", features.user_namespaces),
            ("recursive read-only mounts", features.recursive_read_only_mounts),
        )
        if there
    ]
    return f"{handler.binary or 'built in'}{': ' if able else ''}{', '.join(able)}"


def daemon(config: configuration.Config) -> Iterator[Finding]:
    """Whether it serves."""
    area = Area("daemon")
    path = config.socket_path
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_REACH)
        try:
            probe.connect(path)
        except FileNotFoundError:
            yield area.ok("socket", f"nobody serves {path}: no daemon runs")
        except PermissionError:
            yield area.warning("socket", f"{path} is not for this user", "join socket_group, or run it as root")
        except OSError as error:
            yield area.warning(
                "socket", f"{path}: {error.strerror or error}", "start the daemon: systemctl restart sampan"
            )
        else:
            yield area.ok("socket", f"served at {path}")


class Plugin(msgspec.Struct, frozen=True):
    """A part that can be chosen, and whether it works here."""

    #: ``runtime``, ``snapshotter`` or ``network``.
    type: str
    name: str
    status: str
    detail: str


def plugins(config: configuration.Config) -> Iterator[Plugin]:
    """Runtime handlers, snapshotters and networks, with their status."""
    for finding in runtimes(config):
        default = " (default)" if finding.name == config.cri.default_runtime else ""
        yield Plugin("runtime", finding.name, finding.verdict, finding.message + default)
    overlay = next(machine.modules("/"))
    yield Plugin("snapshotter", "overlayfs", overlay.verdict, overlay.message)
    yield Plugin("snapshotter", "native", "ok", "copies; for file systems that overlayfs does not take")
    with _networks(config) as nets:
        for one in nets.all():
            kinds = "+".join(str(plugin["type"]) for plugin in one.plugins)
            yield Plugin("network", one.name, "ok", f"{kinds} ({one.path or 'built in'})")
        for fault in nets.faults():
            yield Plugin("network", fault.field, "error", fault.message)
        state = network.status(nets)
        if not state.ready:
            yield Plugin("network", "(default)", "error", state.message)
