"""The runtime itself: Version, Status, UpdateRuntimeConfig, RuntimeConfig."""

import ipaddress

import grpc
import msgspec

import sampan
from sampan.cri import api_pb2 as pb
from sampan.cri import failures, fields
from sampan.engine.config import HandlerConfig
from sampan.engine.engine import Engine
from sampan.errors import InvalidInput, SampanError

API_VERSION = "v1"
#: The kubelet refuses a status without it; it is the version of the kubelet's side, not of the runtime.
_KUBE_API_VERSION = "0.1.0"


class Runtime:
    """Calls about the runtime as a whole.

    Args:
        engine: The engine.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def version(self, request: pb.VersionRequest, _context: grpc.ServicerContext) -> pb.VersionResponse:
        """Names and versions."""
        fields.line(request.version, "version")
        return pb.VersionResponse(
            version=_KUBE_API_VERSION,
            runtime_name="sampan",
            runtime_version=sampan.__version__,
            runtime_api_version=API_VERSION,
        )

    def status(self, request: pb.StatusRequest, _context: grpc.ServicerContext) -> pb.StatusResponse:
        """Conditions, handlers, features."""
        network = self._engine.status()
        response = pb.StatusResponse(
            status=pb.RuntimeStatus(
                conditions=[
                    self._runtime_ready(),
                    pb.RuntimeCondition(
                        type="NetworkReady",
                        status=network.network_ready,
                        reason=network.network_reason,
                        message=network.network_message,
                    ),
                ]
            ),
            runtime_handlers=self._handlers(),
            features=pb.RuntimeFeatures(supplemental_groups_policy=True),
        )
        if request.verbose:
            response.info["config"] = self._config()
        return response

    def _runtime_ready(self) -> pb.RuntimeCondition:
        """Whether pods can be run: the store answers."""
        try:
            self._engine.events.since(0, limit=1)
        except (SampanError, OSError) as error:
            return pb.RuntimeCondition(
                type="RuntimeReady", status=False, reason="StoreNotReady", message=failures.one_line(str(error))
            )
        return pb.RuntimeCondition(type="RuntimeReady", status=True)

    def _handlers(self) -> list[pb.RuntimeHandler]:
        """Every handler by its name, and the default once more under the empty one."""
        config = self._engine.config
        named = [(name, config.handlers[name]) for name in sorted(config.handlers)]
        default = config.handlers[config.default_handler]
        return [pb.RuntimeHandler(name=name, features=self._features(each)) for name, each in [("", default), *named]]

    def _features(self, handler: HandlerConfig) -> pb.RuntimeHandlerFeatures:
        """What the handler's runtime says of itself."""
        found = self._engine.runtimes.features(handler)
        return pb.RuntimeHandlerFeatures(
            recursive_read_only_mounts=found.recursive_read_only_mounts, user_namespaces=found.user_namespaces
        )

    def _config(self) -> str:
        config = self._engine.config
        document = {
            # The names that tools know from containerd's answer: critest looks there for where root file systems are.
            "rootDir": config.root,
            "stateDir": config.state,
            "sampan": msgspec.to_builtins(config),
        }
        return msgspec.json.encode(document).decode()

    def update_runtime_config(
        self, request: pb.UpdateRuntimeConfigRequest, _context: grpc.ServicerContext
    ) -> pb.UpdateRuntimeConfigResponse:
        """Pass the node's pod CIDR on to the network."""
        field = "runtime_config.network_config.pod_cidr"
        text = fields.line(request.runtime_config.network_config.pod_cidr, field)
        if text:
            for part in text.split(","):
                try:
                    ipaddress.ip_network(part.strip())
                except ValueError as error:
                    raise InvalidInput(str(error), field=field) from None
            self._engine.set_pod_cidr(text)
        return pb.UpdateRuntimeConfigResponse()

    def runtime_config(
        self, _request: pb.RuntimeConfigRequest, _context: grpc.ServicerContext
    ) -> pb.RuntimeConfigResponse:
        """The cgroup driver."""
        driver = pb.SYSTEMD if self._engine.config.cgroup_driver == "systemd" else pb.CGROUPFS
        return pb.RuntimeConfigResponse(linux=pb.LinuxRuntimeConfiguration(cgroup_driver=driver))
