"""From a PodSandboxConfig to the engine's PodSpec."""

from collections.abc import Iterable, Mapping
from typing import Literal

from sampan.cri import api_pb2 as pb
from sampan.cri import common_requests as common
from sampan.cri import fields
from sampan.engine.checks import SYSCTL_NAME
from sampan.engine.model import Dns, Metadata, PodSpec, PortMapping, Security, SecurityProfile
from sampan.errors import InvalidInput

_PROTOCOLS: dict[int, Literal["tcp", "udp", "sctp"]] = {pb.TCP: "tcp", pb.UDP: "udp", pb.SCTP: "sctp"}


def pod_spec(config: pb.PodSandboxConfig, handler: str = "", field: str = "config") -> PodSpec:
    """Translate and check.

    Args:
        config: The pod as the kubelet asks for it.
        handler: Runtime handler, or empty.
        field: Path of ``config`` in its request, for messages.

    Raises:
        InvalidInput: With the path of the first field that is wrong.
    """
    linux = config.linux
    context = linux.security_context
    path = f"{field}.linux.security_context"
    return PodSpec(
        metadata=_metadata(config, f"{field}.metadata"),
        hostname=fields.hostname(config.hostname, f"{field}.hostname"),
        log_directory=fields.absolute(config.log_directory, f"{field}.log_directory"),
        dns=_dns(config.dns_config, f"{field}.dns_config") if config.HasField("dns_config") else None,
        ports=_ports(config.port_mappings, f"{field}.port_mappings"),
        labels=fields.strings(config.labels, f"{field}.labels"),
        annotations=fields.strings(config.annotations, f"{field}.annotations"),
        cgroup_parent=fields.cgroup_parent(linux.cgroup_parent, f"{field}.linux.cgroup_parent"),
        sysctls=_sysctls(linux.sysctls, f"{field}.linux.sysctls"),
        namespaces=common.namespaces(context.namespace_options, f"{path}.namespace_options", pod=True),
        security=_security(context, path),
        overhead=common.resources(linux.overhead, f"{field}.linux.overhead") if linux.HasField("overhead") else None,
        resources=common.resources(linux.resources, f"{field}.linux.resources")
        if linux.HasField("resources")
        else None,
        handler=fields.word(handler, "runtime_handler"),
    )


def _metadata(config: pb.PodSandboxConfig, field: str) -> Metadata:
    if not config.HasField("metadata"):
        raise InvalidInput("is missing", field=field)
    given = config.metadata
    return Metadata(
        name=fields.line(given.name, f"{field}.name", required=True),
        uid=fields.line(given.uid, f"{field}.uid"),
        namespace=fields.line(given.namespace, f"{field}.namespace"),
        attempt=given.attempt,
    )


def _dns(given: pb.DNSConfig, field: str) -> Dns:
    """Every part becomes a word of resolv.conf, so none may hold a blank (resolv.conf(5))."""
    servers = fields.listed(given.servers, f"{field}.servers", limit=32)
    searches = fields.listed(given.searches, f"{field}.searches", limit=32)
    options = fields.listed(given.options, f"{field}.options", limit=64)
    return Dns(
        servers=tuple(fields.address(v, f"{field}.servers[{n}]", required=True) for n, v in enumerate(servers)),
        searches=tuple(fields.word(v, f"{field}.searches[{n}]", required=True) for n, v in enumerate(searches)),
        options=tuple(fields.word(v, f"{field}.options[{n}]", required=True) for n, v in enumerate(options)),
    )


def _ports(given: Iterable[pb.PortMapping], field: str) -> tuple[PortMapping, ...]:
    """Host ports. A mapping without one only declares a port, and asks for nothing."""
    found = []
    for number, port in enumerate(fields.listed(given, field)):
        at = f"{field}[{number}]"
        mapping = PortMapping(
            container_port=fields.between(port.container_port, 0, 65535, f"{at}.container_port"),
            host_port=fields.between(port.host_port, 0, 65535, f"{at}.host_port"),
            protocol=fields.choice(_PROTOCOLS, port.protocol, f"{at}.protocol"),
            host_ip=fields.address(port.host_ip, f"{at}.host_ip"),
        )
        if not mapping.host_port:
            continue
        if not mapping.container_port:
            raise InvalidInput("is missing", field=f"{at}.container_port")
        found.append(mapping)
    return tuple(found)


def _sysctls(given: Mapping[str, str], field: str) -> dict[str, str]:
    """Names that stay under /proc/sys, values of one line (CVE-2022-0811)."""
    found = dict(given)
    for name, value in found.items():
        fields.line(name, f"{field} key", required=True)
        if not SYSCTL_NAME.fullmatch(name):
            raise InvalidInput(f"{name[:60]!r} is not the name of a sysctl", field=f"{field} key")
        # Lists such as net.ipv4.ip_local_port_range are separated by blanks or tabs.
        fields.line(value.replace("\t", " "), f"{field}[{name!r}]", limit=fields.PATH_LIMIT)
    return found


def _security(context: pb.LinuxSandboxSecurityContext, field: str) -> Security:
    if context.HasField("run_as_group") and not context.HasField("run_as_user"):
        raise InvalidInput("needs run_as_user", field=f"{field}.run_as_group")
    return Security(
        privileged=context.privileged,
        user=common.user_id(context.run_as_user, f"{field}.run_as_user") if context.HasField("run_as_user") else None,
        group=common.user_id(context.run_as_group, f"{field}.run_as_group")
        if context.HasField("run_as_group")
        else None,
        supplemental_groups=common.groups(context.supplemental_groups, f"{field}.supplemental_groups"),
        supplemental_groups_policy=fields.choice(
            common.POLICIES, context.supplemental_groups_policy, f"{field}.supplemental_groups_policy"
        ),
        readonly_rootfs=context.readonly_rootfs,
        seccomp=_seccomp(context, field),
        apparmor=common.profile(context.apparmor, f"{field}.apparmor", path=False)
        if context.HasField("apparmor")
        else SecurityProfile(),
        selinux=common.selinux(context.selinux_options, f"{field}.selinux_options")
        if context.HasField("selinux_options")
        else None,
    )


def _seccomp(context: pb.LinuxSandboxSecurityContext, field: str) -> SecurityProfile:
    if context.HasField("seccomp"):
        return common.profile(context.seccomp, f"{field}.seccomp", path=True)
    named = common.named_profile(context.seccomp_profile_path, f"{field}.seccomp_profile_path", path=True)
    return named or SecurityProfile()
