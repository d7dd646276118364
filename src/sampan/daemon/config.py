"""The daemon's configuration: a TOML file, and drop-ins over it.

``/etc/sampan/config.toml`` is read first, then ``/etc/sampan/conf.d/*.toml`` by name. Tables are merged key by key;
any other value replaces the former one. An error names the file and the key. ``default.toml`` beside this module
documents each key, and a test holds the two together.
"""

import os
import tomllib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from sampan.daemon.sockets import UNIX_PATH_LIMIT, endpoint, is_known
from sampan.engine.config import DEFAULT_ROOT, DEFAULT_STATE, EngineConfig, HandlerConfig
from sampan.errors import InvalidInput, NotFound

DEFAULT_PATH = "/etc/sampan/config.toml"
DROP_INS = "conf.d"
_SIZE_LIMIT = 1 << 20


class CriConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table ``[cri]``."""

    namespace: str = "k8s.io"
    stream_address: str = "127.0.0.1"
    stream_port: int = 0
    stream_tls_cert: str = ""
    stream_tls_key: str = ""
    stream_idle_timeout: int = 4 * 3600
    stream_creation_timeout: int = 30
    default_runtime: str = "sampan"
    cgroup_driver: Literal["cgroupfs", "systemd"] = "cgroupfs"
    sandbox_cgroup: str = "/sampan"
    unset_seccomp: Literal["default", "unconfined"] = "unconfined"
    max_log_line: int = 16384
    max_exec_output: int = 16 << 20
    shm_size: int = 64 << 20
    cdi_spec_dirs: tuple[str, ...] = ("/etc/cdi", "/var/run/cdi")
    timezone: str = ""
    pinned_images: tuple[str, ...] = ()


class RuntimeConfig(HandlerConfig, frozen=True, forbid_unknown_fields=True):
    """A table ``[runtimes.NAME]``."""


class NetworkConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table ``[network]``."""

    conf_dir: str = "/etc/cni/net.d"
    built_in: bool = True
    plugin_dirs: tuple[str, ...] = ("/opt/cni/bin", "/usr/lib/cni")
    conf_template: str = ""


class RegistryConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table ``[registry]``."""

    config_path: tuple[str, ...] = ("/etc/sampan/certs.d", "/etc/containerd/certs.d", "/etc/docker/certs.d")


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole document."""

    root: str = DEFAULT_ROOT
    state: str = DEFAULT_STATE
    socket: str = ""
    socket_group: str = ""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    oom_score: int = 0
    metrics_address: str = ""
    snapshotter: Literal["", "overlayfs", "native"] = ""
    cri: CriConfig = CriConfig()
    runtimes: dict[str, RuntimeConfig] = msgspec.field(default_factory=lambda: {"sampan": RuntimeConfig()})
    network: NetworkConfig = NetworkConfig()
    registry: RegistryConfig = RegistryConfig()

    @property
    def socket_path(self) -> str:
        """Where the CRI is served."""
        return self.socket or f"{self.state}/sampan.sock"

    def engine(self) -> EngineConfig:
        """What the engine needs of it."""
        return EngineConfig(
            root=self.root,
            state=self.state,
            snapshotter=self.snapshotter,
            default_handler=self.cri.default_runtime,
            handlers=dict(self.runtimes),
            cni_conf_dir=self.network.conf_dir,
            cni_built_in=self.network.built_in,
            cni_plugin_dirs=self.network.plugin_dirs,
            cni_conf_template=self.network.conf_template,
            registry_config_dirs=self.registry.config_path,
            cgroup_driver=self.cri.cgroup_driver,
            cgroup_root=self.cri.sandbox_cgroup,
            max_log_line=self.cri.max_log_line,
            max_exec_output=self.cri.max_exec_output,
            shm_size=self.cri.shm_size,
            cdi_spec_dirs=self.cri.cdi_spec_dirs,
            timezone=self.cri.timezone,
            pinned_images=self.cri.pinned_images,
        )


def default_text() -> str:
    """The documented default configuration."""
    with open(os.path.join(os.path.dirname(__file__), "default.toml"), encoding="utf-8") as file:
        return file.read()


def load(path: str = "", overrides: Mapping[str, Any] | None = None, *, serving: bool = False) -> Config:
    """Read the configuration.

    Args:
        path: The file; it must exist. Empty: the default one, if it exists.
        overrides: Values of dotted keys (``cri.stream_port``) that win over all files; from the command line.
        serving: Look for what a daemon needs on the machine, too: a command must work for who may not see the TLS key.

    Raises:
        NotFound: The file named is not there.
        InvalidInput: A file or a value is wrong; names the file and the key.
    """
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for file in files(path):
        document = _read(file)
        _convert(document, file)
        _merge(merged, document, origins, file)
    for key, value in (overrides or {}).items():
        _merge(merged, _nested(key, value), origins, "command line")
    # Describing another handler does not take our own away.
    merged.setdefault("runtimes", {}).setdefault("sampan", {})
    config = _convert(merged, "command line" if overrides else "configuration")
    _check(config, origins, serving=serving)
    return config


def files(path: str) -> list[str]:
    """The files that are read, in order."""
    if path and not os.path.isfile(path):
        raise NotFound(f"configuration {path} does not exist")
    first = path or DEFAULT_PATH
    folder = os.path.join(os.path.dirname(os.path.abspath(first)), DROP_INS)
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".toml"))
    except OSError:
        names = []
    return [first] * os.path.isfile(first) + [os.path.join(folder, name) for name in names]


def _read(file: str) -> dict[str, Any]:
    try:
        with open(file, "rb") as stream:
            text = stream.read(_SIZE_LIMIT + 1)
    except OSError as error:
        raise InvalidInput(error.strerror or str(error), field=file) from error
    if len(text) > _SIZE_LIMIT:
        raise InvalidInput(f"is larger than {_SIZE_LIMIT} bytes", field=file)
    try:
        return tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"not TOML: {error}", field=file) from None


def _convert(document: dict[str, Any], source: str) -> Config:
    try:
        return msgspec.convert(document, Config)
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at `")
        key = place.rstrip("`").removeprefix("$").removeprefix(".").replace("[...]", ".NAME")
        raise InvalidInput(text, field=f"{source}: {key}" if key else source) from None


def _merge(into: dict[str, Any], document: Mapping[str, Any], origins: dict[str, str], source: str) -> None:
    def walk(target: dict[str, Any], given: Mapping[str, Any], prefix: str) -> None:
        for key, value in given.items():
            if isinstance(value, Mapping):
                below = target.setdefault(key, {})
                walk(below, value, f"{prefix}{key}.")
            else:
                target[key] = value
                origins[f"{prefix}{key}"] = source

    walk(into, document, "")


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    result: dict[str, Any] = value
    return result


def _check(config: Config, origins: Mapping[str, str], *, serving: bool) -> None:
    """Rules over values: each fault is reported under the file that set the value."""

    def refuse(key: str, text: str) -> None:
        table = key.rpartition(".")[0]
        beside = next((origin for other, origin in origins.items() if table and other.startswith(f"{table}.")), "")
        raise InvalidInput(text, field=f"{origins.get(key) or beside or 'default'}: {key}")

    for key, path in _paths(config).items():
        if path and (not path.startswith("/") or ".." in path.split("/")):
            refuse(key, f'"{path}" is not an absolute path without ..')
    if os.path.normpath(config.root) == os.path.normpath(config.state):
        refuse("state", "is the same folder as root")
    if len(config.socket_path.encode()) > UNIX_PATH_LIMIT:
        refuse("socket", f"is longer than the {UNIX_PATH_LIMIT} bytes that a unix socket's path may have")
    for key, value, low, high in (
        ("oom_score", config.oom_score, -1000, 1000),
        ("cri.stream_port", config.cri.stream_port, 0, 65535),
        ("cri.stream_idle_timeout", config.cri.stream_idle_timeout, 0, 7 * 86400),
        ("cri.stream_creation_timeout", config.cri.stream_creation_timeout, 1, 3600),
        ("cri.max_log_line", config.cri.max_log_line, 1024, 1 << 20),
        ("cri.max_exec_output", config.cri.max_exec_output, 0, 16 << 20),
        ("cri.shm_size", config.cri.shm_size, 4096, 1 << 40),
        *((f"runtimes.{name}.timeout", runtime.timeout, 1, 3600) for name, runtime in config.runtimes.items()),
    ):
        if not low <= value <= high:
            refuse(key, f"{value} is not between {low} and {high}")
    _check_choices(config, refuse)
    _check_served(config, refuse, serving=serving)


def _check_choices(config: Config, refuse: Callable[[str, str], None]) -> None:
    """Values that need another one, or something on the machine."""
    if bool(config.cri.stream_tls_cert) != bool(config.cri.stream_tls_key):
        refuse("cri.stream_tls_cert", "is only of use together with cri.stream_tls_key")
    if config.cri.timezone:
        from sampan.engine.volumes import zone_file

        if not zone_file(config.cri.timezone):
            refuse("cri.timezone", f'"{config.cri.timezone}" is neither Local nor a zone in /usr/share/zoneinfo')
    if config.cri.default_runtime not in config.runtimes:
        refuse("cri.default_runtime", f"no table [runtimes.{config.cri.default_runtime}] describes it")
    for name, runtime in config.runtimes.items():
        if runtime.type == "external" and not runtime.binary:
            refuse(f"runtimes.{name}.binary", 'is needed with type = "external"')


def _check_served(config: Config, refuse: Callable[[str, str], None], *, serving: bool) -> None:
    """Where the daemon listens, and with ``serving`` whether the machine has what that needs."""
    hosts = {"cri.stream_address": config.cri.stream_address}
    if config.metrics_address:
        try:
            where = endpoint(config.metrics_address)
        except InvalidInput as error:
            refuse("metrics_address", error.message)
        else:
            hosts["metrics_address"] = "" if isinstance(where, str) else where[0]
    if not serving:
        return
    for key, host in hosts.items():
        if host and not is_known(host):
            refuse(key, f'"{host}" is neither an address nor the name of one')
    for key, file in (
        ("cri.stream_tls_cert", config.cri.stream_tls_cert),
        ("cri.stream_tls_key", config.cri.stream_tls_key),
    ):
        if file and not os.path.isfile(file):
            refuse(key, f"there is no file {file}")


def _paths(config: Config) -> dict[str, str]:
    found = {
        "root": config.root,
        "state": config.state,
        "socket": config.socket,
        "cri.stream_tls_cert": config.cri.stream_tls_cert,
        "cri.stream_tls_key": config.cri.stream_tls_key,
        "cri.sandbox_cgroup": config.cri.sandbox_cgroup,
        "network.conf_dir": config.network.conf_dir,
        "network.conf_template": config.network.conf_template,
    }
    for name, runtime in config.runtimes.items():
        found[f"runtimes.{name}.binary"] = runtime.binary
        found[f"runtimes.{name}.root"] = runtime.root
    for key, folders in (
        ("network.plugin_dirs", config.network.plugin_dirs),
        ("registry.config_path", config.registry.config_path),
        ("cri.cdi_spec_dirs", config.cri.cdi_spec_dirs),
    ):
        found[key] = next((folder for folder in folders if not folder.startswith("/")), "")
    return found


def dump(config: Config) -> str:
    """The configuration as TOML, every key with the value in force."""
    lines: list[str] = []
    _table(msgspec.to_builtins(config), "", lines)
    return "\n".join(lines).strip() + "\n"


def _table(values: Mapping[str, Any], name: str, lines: list[str]) -> None:
    plain = {key: value for key, value in values.items() if not isinstance(value, Mapping)}
    if name and plain:
        lines += ["", f"[{name}]"]
    lines += [f"{_key(key)} = {_value(value)}" for key, value in plain.items()]
    for key, value in values.items():
        if isinstance(value, Mapping):
            _table(value, f"{name}.{_key(key)}" if name else _key(key), lines)


def _key(key: str) -> str:
    bare = key and key.isascii() and key.replace("-", "").replace("_", "").isalnum()
    return key if bare else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_value(each) for each in value)}]"
    # JSON's strings, numbers and booleans are TOML's.
    return msgspec.json.encode(value).decode()
