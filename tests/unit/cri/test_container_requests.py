"""ContainerConfig -> ContainerSpec: what is passed on, and which field a fault is laid at."""

from collections.abc import Callable

import pytest

from sampan.cri import api_pb2 as pb
from sampan.cri import container_messages, signals
from sampan.cri.common_requests import resources
from sampan.cri.container_requests import container_spec
from sampan.engine.model import Device, Mount, Resources, SecurityProfile
from sampan.engine.oci import stop_signal
from sampan.errors import InvalidInput


def base() -> pb.ContainerConfig:
    return pb.ContainerConfig(metadata=pb.ContainerMetadata(name="main"), image=pb.ImageSpec(image="busybox"))


def test_everything_is_passed_on() -> None:
    config = base()
    config.image.user_specified_image = "busybox:1"
    config.command.extend(["sh", "-c"])
    config.args.append("exit 3")
    config.working_dir = "/tmp"
    config.envs.add(key="A", value="b=c\n")
    config.mounts.add(container_path="/data", host_path="/srv", readonly=True, recursive_read_only=True)
    config.mounts.add(container_path="/image", image_sub_path="bin").image.image = "tools:1"
    config.devices.add(host_path="/dev/null", container_path="/dev/zilch", permissions="rw")
    config.CDI_devices.add(name="vendor.com/gpu=0")
    config.log_path = "main/0.log"
    config.stdin = config.stdin_once = config.tty = True
    config.stop_signal = pb.SIGRTMINPLUS3
    config.linux.resources.cpu_quota = 10000
    context = config.linux.security_context
    context.run_as_user.value = 1000
    context.run_as_username = "nobody"
    context.run_as_group.value = 100
    context.supplemental_groups_policy = pb.Strict
    context.capabilities.add_capabilities.append("NET_ADMIN")
    context.masked_paths.append("/proc/kcore")
    context.apparmor.profile_type = pb.SecurityProfile.Localhost
    context.apparmor.localhost_ref = "mine"

    spec = container_spec(config, unset_seccomp="default")

    assert (spec.image, spec.image_ref) == ("busybox:1", "busybox")
    assert (spec.command, spec.args, spec.working_dir) == (("sh", "-c"), ("exit 3",), "/tmp")
    assert spec.envs == (("A", "b=c\n"),)
    assert spec.mounts == (
        Mount(container_path="/data", host_path="/srv", readonly=True, recursive_readonly=True),
        Mount(container_path="/image", image="tools:1", image_subpath="bin"),
    )
    assert spec.devices == (Device(host_path="/dev/null", container_path="/dev/zilch", permissions="rw"),)
    assert spec.cdi_devices == ("vendor.com/gpu=0",)
    assert (spec.log_path, spec.stdin, spec.stdin_once, spec.tty) == ("main/0.log", True, True, True)
    assert spec.stop_signal == "SIGRTMIN+3"
    assert spec.resources == Resources(cpu_quota=10000, oom_score_adj=0)
    security = spec.security
    assert (security.user, security.group, security.username) == (1000, 100, "")
    assert security.supplemental_groups_policy == "strict"
    assert security.add_capabilities == ("NET_ADMIN",)
    assert (security.masked_paths, security.readonly_paths) == (("/proc/kcore",), ())
    assert security.seccomp == SecurityProfile("default")
    assert security.apparmor == SecurityProfile("localhost", "mine")


@pytest.mark.parametrize(
    ("path", "profile"),
    [
        ("", SecurityProfile("unconfined")),
        ("runtime/default", SecurityProfile("default")),
        ("docker/default", SecurityProfile("default")),
        ("unconfined", SecurityProfile("unconfined")),
        ("localhost//etc/profile.json", SecurityProfile("localhost", "/etc/profile.json")),
    ],
)
def test_deprecated_seccomp_paths(path: str, profile: SecurityProfile) -> None:
    config = base()
    config.linux.security_context.seccomp_profile_path = path
    assert container_spec(config, unset_seccomp="unconfined").security.seccomp == profile


FAULTS: list[tuple[Callable[[pb.ContainerConfig], object], str]] = [
    (lambda c: c.ClearField("metadata"), "config.metadata"),
    (lambda c: c.ClearField("image"), "config.image.image"),
    (lambda c: c.command.extend(["ok", "a\0b"]), "config.command[1]"),
    (lambda c: c.args.append("x" * (1 << 17)), "config.args[0]"),
    (lambda c: c.args.extend(["x" * 100_000] * 22), "config.args"),
    (lambda c: c.envs.add(key="A=B"), "config.envs[0].key"),
    (lambda c: c.envs.add(key=""), "config.envs[0].key"),
    (lambda c: c.mounts.add(host_path="/srv"), "config.mounts[0].container_path"),
    (lambda c: c.mounts.add(container_path="/a"), "config.mounts[0].host_path"),
    (lambda c: c.mounts.add(container_path="/a", host_path="b"), "config.mounts[0].host_path"),
    (lambda c: c.mounts.add(container_path="/a", host_path="/b/../c"), "config.mounts[0].host_path"),
    (lambda c: c.mounts.add(container_path="/a", host_path="/b", propagation=7),
     "config.mounts[0].propagation"),
    (lambda c: c.mounts.add(container_path="/a", host_path="/b", recursive_read_only=True),
     "config.mounts[0].recursive_read_only"),
    (lambda c: c.mounts.add(container_path="/a", host_path="/b", readonly=True, recursive_read_only=True,
                            propagation=pb.PROPAGATION_BIDIRECTIONAL), "config.mounts[0].recursive_read_only"),
    (lambda c: c.mounts.add(container_path="/a", host_path="/b", image_sub_path="c"),
     "config.mounts[0].image_sub_path"),
    (lambda c: c.mounts.add(container_path="/a", image=pb.ImageSpec(image="i"), image_sub_path="../c"),
     "config.mounts[0].image_sub_path"),
    (lambda c: c.devices.add(host_path="/dev/null"), "config.devices[0].permissions"),
    (lambda c: c.devices.add(host_path="/dev/null", permissions="rx"), "config.devices[0].permissions"),
    (lambda c: setattr(c, "log_path", "/var/log/x"), "config.log_path"),
    (lambda c: setattr(c, "log_path", "../x"), "config.log_path"),
    (lambda c: setattr(c, "working_dir", "tmp"), "config.working_dir"),
    (lambda c: setattr(c, "stop_signal", 99), "config.stop_signal"),
    (lambda c: setattr(c.linux.resources, "cpuset_cpus", "0-3,x"), "config.linux.resources.cpuset_cpus"),
    (lambda c: setattr(c.linux.resources, "oom_score_adj", 1001), "config.linux.resources.oom_score_adj"),
    (lambda c: c.linux.resources.unified.update({"../memory.max": "1"}), "config.linux.resources.unified key"),
    (lambda c: c.linux.resources.hugepage_limits.add(page_size="2 MB"),
     "config.linux.resources.hugepage_limits[0].page_size"),
    (lambda c: setattr(c.linux.security_context.run_as_group, "value", 1),
     "config.linux.security_context.run_as_group"),
    (lambda c: c.linux.security_context.supplemental_groups.append(1 << 32),
     "config.linux.security_context.supplemental_groups[0]"),
    (lambda c: c.linux.security_context.masked_paths.append("proc"),
     "config.linux.security_context.masked_paths[0]"),
    (lambda c: setattr(c.linux.security_context.namespace_options, "pid", pb.TARGET),
     "config.linux.security_context.namespace_options.target_id"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "field"), FAULTS, ids=[field for _, field in FAULTS])
def test_a_fault_is_laid_at_its_field(change: Callable[[pb.ContainerConfig], object], field: str) -> None:
    config = base()
    change(config)
    with pytest.raises(InvalidInput) as caught:
        container_spec(config, unset_seccomp="unconfined")
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("/a/../b", "/b"),
        ("/../../a/./b/", "/a/b"),
        ("//../a", "/a"),
        ("/..", "/"),
        ("/a/..b/", "/a/..b/"),
        ("//a", "//a"),
    ],
)
def test_a_path_in_the_container_climbs_no_higher_than_its_root(given: str, meant: str) -> None:
    config = base()
    config.working_dir = given
    config.mounts.add(container_path=given, host_path="/srv")
    config.devices.add(host_path="/dev/null", container_path=given, permissions="r")
    spec = container_spec(config, unset_seccomp="unconfined")
    assert (spec.working_dir, spec.mounts[0].container_path, spec.devices[0].container_path) == (meant,) * 3


def test_limits_come_back_as_they_went() -> None:
    given = pb.LinuxContainerResources(
        cpu_period=100_000,
        cpu_quota=-1,
        cpu_shares=512,
        memory_limit_in_bytes=1 << 30,
        oom_score_adj=-5,
        cpuset_cpus="0-1,3",
        cpuset_mems="0",
        hugepage_limits=[pb.HugepageLimit(page_size="2MB", limit=4 << 20)],
        unified={"memory.high": "1000"},
        memory_swap_limit_in_bytes=2 << 30,
    )
    assert container_messages.resources(resources(given, "linux")) == given


@pytest.mark.parametrize("number", [number for number in pb.Signal.values() if number])
def test_signals_come_back_as_they_went(number: int) -> None:
    name = signals.to_engine(number, "stop_signal")
    assert signals.to_message(name) == number
    # The engine knows them all, so that what could be created can be stopped.
    assert 0 < stop_signal(name) <= 64


@pytest.mark.parametrize(
    ("name", "number"),
    [("", pb.RUNTIME_DEFAULT), ("15", pb.SIGTERM), ("TERM", pb.SIGTERM), ("sigrtmin+1", pb.SIGRTMINPLUS1), ("x", 0)],
)
def test_signals_of_images(name: str, number: int) -> None:
    assert signals.to_message(name) == number
