"""What an engine must be told: where its state is, how containers are run, where networks and registries are described.

The daemon fills this from its TOML file, a command line from its flags, a program as it likes.
"""

from typing import Literal

import msgspec

DEFAULT_ROOT = "/var/lib/sampan"
DEFAULT_STATE = "/run/sampan"


class HandlerConfig(msgspec.Struct, frozen=True):
    """One runtime handler: our own runtime in the monitor's process, or the binary of another."""

    type: Literal["native", "external"] = "native"
    binary: str = ""
    #: Where the runtime keeps its state; empty: ``<state>/runtime/<handler>``.
    root: str = ""
    #: Further arguments put before the binary's sub-command.
    options: tuple[str, ...] = ()
    #: Seconds after which a command of the binary that hangs is killed.
    timeout: int = 120
    #: Give privileged containers every device of the machine.
    privileged_host_devices: bool = True
    #: Annotations of pods (names, or prefixes ending in ``*``) that are passed on to the runtime.
    pod_annotations: tuple[str, ...] = ()


class EngineConfig(msgspec.Struct, frozen=True):
    """Configuration of an engine; every path absolute."""

    root: str = DEFAULT_ROOT
    state: str = DEFAULT_STATE
    #: Where logs of containers are kept that no kubelet made.
    log_root: str = "/var/log/sampan"
    #: ``overlayfs``, ``native``, or empty for what ``root`` was made with, or the best that works.
    snapshotter: str = ""
    default_handler: str = "sampan"
    handlers: dict[str, HandlerConfig] = msgspec.field(default_factory=lambda: {"sampan": HandlerConfig()})
    cni_conf_dir: str = "/etc/cni/net.d"
    #: Whether a bridge network that is built in serves while ``cni_conf_dir`` has no configuration.
    cni_built_in: bool = True
    cni_plugin_dirs: tuple[str, ...] = ("/opt/cni/bin", "/usr/lib/cni")
    #: Template of the conflist that the kubelet's pod CIDR fills; empty: the CIDR is the built-in network's.
    cni_conf_template: str = ""
    registry_config_dirs: tuple[str, ...] = ("/etc/sampan/certs.d", "/etc/containerd/certs.d", "/etc/docker/certs.d")
    #: Names of images, with ``*`` for any text, that a kubelet is told not to collect.
    pinned_images: tuple[str, ...] = ()
    #: Where devices are described that containers ask for by CDI names; a later folder's word counts more.
    cdi_spec_dirs: tuple[str, ...] = ("/etc/cdi", "/var/run/cdi")
    cgroup_driver: Literal["cgroupfs", "systemd"] = "cgroupfs"
    #: Parent of the cgroups of pods that name none.
    cgroup_root: str = "/sampan"
    max_log_line: int = 16384
    #: Bytes of one exec's captured output; what is above is dropped (CVE-2022-31030).
    max_exec_output: int = 16 << 20
    #: Size of /dev/shm of a pod.
    shm_size: int = 64 << 20
    #: Time zone of containers that mount no /etc/localtime: ``Local`` for the machine's, or a name; empty: the image's.
    timezone: str = ""
