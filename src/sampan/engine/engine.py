"""The engine: images, pods and containers of one namespace, for the daemon, the command lines and Python programs.

    engine = Engine(EngineConfig(), namespace="default")
    image = engine.images.pull("docker.io/library/busybox:latest")
    pod = engine.pods.run(PodSpec(metadata=Metadata("job")))
    container = engine.containers.create(pod.id, ContainerSpec(metadata=Metadata("main"), image=image.id))
    engine.containers.start(container.id)

Any number of engines, in any number of processes, may be open on one root: what is true stands in the store and in
the monitors, never here.
"""

import os
import threading
from typing import TYPE_CHECKING, Any

import msgspec

from sampan import network
from sampan.engine import checks
from sampan.engine.config import EngineConfig, HandlerConfig
from sampan.engine.containers import Containers
from sampan.engine.disk import Disk
from sampan.engine.events import Events
from sampan.engine.handlers import Handlers
from sampan.engine.images import Images
from sampan.engine.layout import Layout
from sampan.engine.model import ContainerRecord, PodRecord
from sampan.engine.pods import Pods
from sampan.engine.readings import Readings
from sampan.engine.records import Locks, Records
from sampan.errors import InvalidInput, SampanError
from sampan.shim import spawn
from sampan.shim.client import MonitorClient
from sampan.storage.store import Store

if TYPE_CHECKING:
    from sampan.engine.recovery import Recovery
    from sampan.engine.watch import Watch
    from sampan.registry.resolver import Resolver
    from sampan.shim.zygote import Zygote


class EngineStatus(msgspec.Struct, frozen=True):
    """Whether pods can be given a network, and if not, why."""

    network_ready: bool
    network_reason: str = ""
    network_message: str = ""


class Engine:
    """One namespace of one root.

    Args:
        config: Where everything is.
        namespace: containerd's kind of namespace: names of images, pods and containers are its own, content is shared.
        zygote: What monitors are forked from; None: each is started afresh.
    """

    def __init__(self, config: EngineConfig, *, namespace: str = "default", zygote: "Zygote | None" = None) -> None:
        checks.namespace(namespace)
        self.config = config
        self.namespace = namespace
        self.zygote = zygote
        self.layout = Layout(config.state)
        self.layout.make()
        self.store = Store(config.root, snapshotter=config.snapshotter)
        self.locks = Locks(f"{config.state}/locks")
        #: Can be read once the engine ends: no network plugin is waited for any more.
        self._ending = os.eventfd(0, os.EFD_CLOEXEC)
        self.networks = self._networks()
        self.events = Events(self.store.events, namespace, self.store.records(namespace, "followers"))
        self.pod_records = Records(self.store.records(namespace, "pods"), PodRecord, "pod")
        self.container_records = Records(self.store.records(namespace, "containers"), ContainerRecord, "container")
        self.images = Images(self)
        self.pods = Pods(self)
        self.containers = Containers(self)
        self.disk = Disk(self.store.snapshots)
        self.readings = Readings(systemd=config.cgroup_driver == "systemd")
        self.runtimes = Handlers()
        self._monitors: dict[str, MonitorClient] = {}
        self._monitors_lock = threading.Lock()
        self._resolver: Resolver | None = None
        self._watch: Watch | None = None
        self._recovery: Recovery | None = None

    def _networks(self) -> network.Networks:
        # Beside the store, not with the state: what was attached must be known after a reboot too, so that external
        # plugins are told to let go of it.
        config = self.config
        return network.load(
            config.cni_conf_dir,
            state_dir=f"{config.root}/network",
            bin_dirs=config.cni_plugin_dirs,
            default=config.cni_built_in,
            ending=self._ending,
        )

    @property
    def resolver(self) -> "Resolver":
        """The one resolver of registry hosts and credentials."""
        if self._resolver is None:
            from sampan.registry import Resolver

            self._resolver = Resolver(hosts_dirs=self.config.registry_config_dirs)
        return self._resolver

    def handler(self, name: str) -> tuple[str, HandlerConfig]:
        """The runtime handler of this name; an empty name is the default's.

        Raises:
            InvalidInput: No handler has the name.
        """
        wanted = name or self.config.default_handler
        try:
            return wanted, self.config.handlers[wanted]
        except KeyError:
            known = ", ".join(sorted(self.config.handlers))
            raise InvalidInput(
                f'no runtime handler is called "{wanted}"', field="runtime_handler", hint=f"configured: {known}"
            ) from None

    def monitor(self, pod_id: str) -> MonitorClient:
        """The client of a pod's monitor; makes no connection yet."""
        with self._monitors_lock:
            client = self._monitors.get(pod_id)
            if client is None:
                client = self._monitors[pod_id] = MonitorClient(self.layout.socket(pod_id))
            return client

    def start_monitor(self, pod_id: str, handler: str) -> MonitorClient:
        """Start a pod's monitor; its control socket listens when this returns."""
        options = {"handler": self._handler_options(handler), "log_max_line": self.config.max_log_line}
        start = self.zygote.fork_monitor if self.zygote else spawn.monitor
        start(pod_id, self.layout.pod(pod_id), options)
        return self.monitor(pod_id)

    def forget_monitor(self, pod_id: str) -> None:
        """Drop the client of a monitor that has ended."""
        with self._monitors_lock:
            client = self._monitors.pop(pod_id, None)
        if client is not None:
            client.close()

    def _handler_options(self, name: str) -> dict[str, Any]:
        config = self.config.handlers[name]
        root = self.runtime_root(name)
        systemd = self.config.cgroup_driver == "systemd"
        if config.type == "native":
            return {"type": "native", "root": root, "systemd": systemd}
        return {
            "type": "external",
            "binary": config.binary,
            "root": root,
            "systemd": systemd,
            "options": list(config.options),
            "timeout": config.timeout,
        }

    def runtime_root(self, handler: str) -> str:
        """State directory of a handler's runtime; of a handler that is not configured any more, the usual one."""
        config = self.config.handlers.get(handler)
        return (config.root if config else "") or self.layout.runtime(handler)

    def reload(self, config: EngineConfig) -> None:
        """Take up changed settings of registries and networks; roots and handlers stay until the next start."""
        before = self.config
        self.config = msgspec.structs.replace(
            before,
            registry_config_dirs=config.registry_config_dirs,
            max_exec_output=config.max_exec_output,
            cni_conf_dir=config.cni_conf_dir,
            cni_built_in=config.cni_built_in,
            cni_plugin_dirs=config.cni_plugin_dirs,
        )
        if _network_settings(before) != _network_settings(config):
            self.networks = self._networks()
        self._resolver = None

    def status(self) -> EngineStatus:
        """Whether pods can be given a network."""
        found = network.status(self.networks)
        return EngineStatus(found.ready, found.reason, found.message)

    def set_pod_cidr(self, cidr: str) -> None:
        """Give pods addresses of ``cidr`` (the kubelet's UpdateRuntimeConfig)."""
        self.networks.set_pod_cidr(cidr, self.config.cni_conf_template)

    def tidy(self) -> None:
        """Take the bridges and rules that no pod uses any more; for the last thing that a daemon or a command does."""
        self._end_plugins()
        try:
            network.tidy(self.networks)
        except SampanError:
            return  # they do no harm, and the next one to end tries again

    def recover(self) -> None:
        """Bring records and machine together after a crash or a reboot; the daemon calls it once, at start.

        What is still under way after a few seconds, because a network plugin takes its time, goes on in threads.
        """
        from sampan.engine.recovery import recover

        self.store.database.reserve()
        self._recovery = recover(self)

    def watch(self) -> None:
        """Follow every monitor's events from a thread, so that exits are recorded as they happen."""
        from sampan.engine.watch import Watch

        if self._watch is None:
            self._watch = Watch(self)
        for pod in self.pods.list():
            if pod.state == "ready":
                self._watch.add(pod.id)

    def watch_pod(self, pod_id: str) -> None:
        """Follow one more monitor, if this engine follows any."""
        if self._watch is not None:
            self._watch.add(pod_id)

    def close(self) -> None:
        """Let go of the store and of every connection; pods live on."""
        self._end_plugins()
        if self._watch is not None:
            self._watch.close()
        with self._monitors_lock:
            clients, self._monitors = list(self._monitors.values()), {}
        for client in clients:
            client.close()
        self.runtimes.close()
        self.store.close()
        fd, self._ending = self._ending, -1
        if fd >= 0:
            os.close(fd)

    def _end_plugins(self) -> None:
        """End the network plugins under way: at a recovery, or of a call that the daemon's end has cut off."""
        if self._ending >= 0:
            os.eventfd_write(self._ending, 1)
        if self._recovery is not None:
            self._recovery.close()


def _network_settings(config: EngineConfig) -> tuple[object, ...]:
    """What tells one set of networks from another."""
    return config.cni_conf_dir, config.cni_built_in, config.cni_plugin_dirs
