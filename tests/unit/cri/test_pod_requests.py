"""PodSandboxConfig -> PodSpec: what is passed on, and which field a fault is laid at."""

from collections.abc import Callable

import pytest

from sampan.cri import api_pb2 as pb
from sampan.cri.pod_requests import pod_spec
from sampan.engine.model import Dns, IdMapping, Metadata, Namespaces, PortMapping, SecurityProfile
from sampan.errors import InvalidInput


def base() -> pb.PodSandboxConfig:
    return pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="web", uid="u", namespace="default", attempt=1))


def test_an_almost_empty_pod_shares_all_namespaces() -> None:
    spec = pod_spec(base())
    assert spec.metadata == Metadata("web", "u", "default", 1)
    assert spec.namespaces == Namespaces(network="pod", pid="pod", ipc="pod")
    assert spec.dns is None
    assert spec.resources is None


def test_everything_is_passed_on() -> None:
    config = base()
    config.hostname = "web-0"
    config.log_directory = "/var/log/pods/web"
    config.dns_config.servers.append("10.0.0.10")
    config.dns_config.searches.append("svc.cluster.local")
    config.dns_config.options.append("ndots:5")
    config.port_mappings.add(protocol=pb.UDP, container_port=53, host_port=5353, host_ip="::1")
    config.port_mappings.add(container_port=80)
    config.labels["app"] = "web"
    config.annotations["note"] = "two\nlines"
    config.linux.cgroup_parent = "/kubepods/pod1"
    config.linux.sysctls["net.ipv4.ip_local_port_range"] = "1024\t65535"
    config.linux.overhead.memory_limit_in_bytes = 1 << 20
    context = config.linux.security_context
    context.namespace_options.network = pb.NODE
    context.namespace_options.pid = pb.CONTAINER
    context.namespace_options.userns_options.uids.add(host_id=100000, container_id=0, length=65536)
    context.namespace_options.userns_options.gids.add(host_id=200000, container_id=0, length=65536)
    context.privileged = True
    context.run_as_user.value = 0
    context.seccomp.profile_type = pb.SecurityProfile.Unconfined

    spec = pod_spec(config, "runc")

    assert spec.handler == "runc"
    assert spec.hostname == "web-0"
    assert spec.log_directory == "/var/log/pods/web"
    assert spec.dns == Dns(("10.0.0.10",), ("svc.cluster.local",), ("ndots:5",))
    assert spec.ports == (PortMapping(container_port=53, host_port=5353, protocol="udp", host_ip="::1"),)
    assert spec.labels == {"app": "web"}
    assert spec.annotations == {"note": "two\nlines"}
    assert spec.cgroup_parent == "/kubepods/pod1"
    assert spec.sysctls == {"net.ipv4.ip_local_port_range": "1024\t65535"}
    assert spec.overhead is not None
    assert spec.overhead.memory_limit == 1 << 20
    assert spec.namespaces.network == "node"
    assert spec.namespaces.pid == "container"
    assert spec.namespaces.uid_mappings == (IdMapping(container_id=0, host_id=100000, size=65536),)
    assert spec.namespaces.gid_mappings == (IdMapping(container_id=0, host_id=200000, size=65536),)
    assert spec.security.privileged
    assert spec.security.user == 0
    assert spec.security.seccomp == SecurityProfile("unconfined")


def _set(path: str, value: object) -> Callable[[pb.PodSandboxConfig], None]:
    *way, last = path.split(".")

    def change(config: pb.PodSandboxConfig) -> None:
        target: object = config
        for name in way:
            target = getattr(target, name)
        setattr(target, last, value)

    return change


FAULTS: list[tuple[Callable[[pb.PodSandboxConfig], object], str]] = [
    (lambda c: c.ClearField("metadata"), "config.metadata"),
    (_set("metadata.name", ""), "config.metadata.name"),
    (_set("metadata.name", "a\nb"), "config.metadata.name"),
    (_set("metadata.namespace", "n" * 513), "config.metadata.namespace"),
    (_set("hostname", "a" * 65), "config.hostname"),
    (_set("hostname", "a b"), "config.hostname"),
    (_set("log_directory", "var/log"), "config.log_directory"),
    (_set("log_directory", "/var/../etc"), "config.log_directory"),
    (_set("log_directory", "/" + "a" * 5000), "config.log_directory"),
    (lambda c: c.dns_config.servers.append("dns.example"), "config.dns_config.servers[0]"),
    (lambda c: c.dns_config.searches.append("a\nnameserver 6.6.6.6"), "config.dns_config.searches[0]"),
    (lambda c: c.dns_config.options.extend(["ok", "a b"]), "config.dns_config.options[1]"),
    (lambda c: c.port_mappings.add(container_port=70000, host_port=1), "config.port_mappings[0].container_port"),
    (lambda c: c.port_mappings.add(container_port=-1, host_port=1), "config.port_mappings[0].container_port"),
    (lambda c: c.port_mappings.add(host_port=80), "config.port_mappings[0].container_port"),
    (lambda c: c.port_mappings.add(container_port=1, host_port=1, host_ip="x"), "config.port_mappings[0].host_ip"),
    (lambda c: c.labels.update({"a\nb": "x"}), "config.labels key"),
    (lambda c: c.annotations.update({"a": "x" * (1 << 20)}), "config.annotations"),
    (_set("linux.cgroup_parent", "/a/../../b"), "config.linux.cgroup_parent"),
    (lambda c: c.linux.sysctls.update({"kernel.shm_rmid_forced": "1+kernel.core_pattern=x\n"}),
     "config.linux.sysctls['kernel.shm_rmid_forced']"),
    (lambda c: c.linux.sysctls.update({"../../etc/passwd": "1"}), "config.linux.sysctls key"),
    (_set("linux.security_context.namespace_options.network", pb.CONTAINER),
     "config.linux.security_context.namespace_options.network"),
    (_set("linux.security_context.namespace_options.pid", pb.TARGET),
     "config.linux.security_context.namespace_options.pid"),
    (_set("linux.security_context.namespace_options.userns_options.mode", pb.CONTAINER),
     "config.linux.security_context.namespace_options.userns_options.mode"),
    (_set("linux.security_context.namespace_options.userns_options.mode", pb.POD),
     "config.linux.security_context.namespace_options.userns_options.uids"),
    (lambda c: c.linux.security_context.namespace_options.userns_options.uids.add(container_id=1, length=5),
     "config.linux.security_context.namespace_options.userns_options.uids"),
    (_set("linux.security_context.run_as_group.value", 5), "config.linux.security_context.run_as_group"),
    (_set("linux.security_context.run_as_user.value", -1), "config.linux.security_context.run_as_user"),
    (_set("linux.security_context.seccomp_profile_path", "nothing"),
     "config.linux.security_context.seccomp_profile_path"),
    (_set("linux.overhead.cpu_period", 5), "config.linux.overhead.cpu_period"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "field"), FAULTS, ids=[field for _, field in FAULTS])
def test_a_fault_is_laid_at_its_field(change: Callable[[pb.PodSandboxConfig], object], field: str) -> None:
    config = base()
    change(config)
    with pytest.raises(InvalidInput) as caught:
        pod_spec(config)
    assert caught.value.field == field
    assert "\n" not in str(caught.value)
