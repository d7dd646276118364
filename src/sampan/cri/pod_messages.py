"""From the engine's pod records to messages."""

from sampan.cri import api_pb2 as pb
from sampan.engine.model import IdMapping, NamespaceMode, Namespaces, PodRecord

MODES: dict[NamespaceMode, pb.NamespaceMode.ValueType] = {
    "pod": pb.POD,
    "container": pb.CONTAINER,
    "node": pb.NODE,
    "target": pb.TARGET,
}


def metadata(pod: PodRecord) -> pb.PodSandboxMetadata:
    """The pod's identity as the kubelet gave it."""
    given = pod.spec.metadata
    return pb.PodSandboxMetadata(name=given.name, uid=given.uid, namespace=given.namespace, attempt=given.attempt)


def state(pod: PodRecord) -> pb.PodSandboxState.ValueType:
    """READY or not; there is nothing between."""
    return pb.SANDBOX_READY if pod.state == "ready" else pb.SANDBOX_NOTREADY


def sandbox(pod: PodRecord) -> pb.PodSandbox:
    """A pod in a list."""
    return pb.PodSandbox(
        id=pod.id,
        metadata=metadata(pod),
        state=state(pod),
        created_at=pod.created_at,
        labels=pod.spec.labels,
        annotations=pod.spec.annotations,
        runtime_handler=pod.spec.handler,
    )


def status(pod: PodRecord) -> pb.PodSandboxStatus:
    """A pod in full."""
    ready = pod.state == "ready"
    return pb.PodSandboxStatus(
        id=pod.id,
        metadata=metadata(pod),
        state=state(pod),
        created_at=pod.created_at,
        network=network(pod.ips if ready else ()),
        linux=pb.LinuxPodSandboxStatus(namespaces=pb.Namespace(options=namespaces(pod.spec.namespaces))),
        labels=pod.spec.labels,
        annotations=pod.spec.annotations,
        runtime_handler=pod.spec.handler,
    )


def network(ips: tuple[str, ...]) -> pb.PodSandboxNetworkStatus:
    """Addresses, the first apart from the others."""
    return pb.PodSandboxNetworkStatus(
        ip=ips[0] if ips else "", additional_ips=[pb.PodIP(ip=address) for address in ips[1:]]
    )


def namespaces(given: Namespaces) -> pb.NamespaceOption:
    """Namespace modes, as they were asked for."""
    options = pb.NamespaceOption(
        network=MODES[given.network], pid=MODES[given.pid], ipc=MODES[given.ipc], target_id=given.target_id
    )
    if given.uid_mappings or given.gid_mappings:
        options.userns_options.CopyFrom(
            pb.UserNamespace(mode=pb.POD, uids=mappings(given.uid_mappings), gids=mappings(given.gid_mappings))
        )
    return options


def mappings(given: tuple[IdMapping, ...]) -> list[pb.IDMapping]:
    """Id mappings."""
    return [pb.IDMapping(host_id=m.host_id, container_id=m.container_id, length=m.size) for m in given]
