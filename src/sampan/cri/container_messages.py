"""From the engine's container records to messages."""

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

from sampan.cri import api_pb2 as pb
from sampan.cri import pod_messages, signals
from sampan.engine.model import ContainerRecord, ImageRecord, Mount, Resources

if TYPE_CHECKING:
    from sampan.engine.images import Images

_STATES: dict[str, pb.ContainerState.ValueType] = {
    "created": pb.CONTAINER_CREATED,
    "running": pb.CONTAINER_RUNNING,
    "exited": pb.CONTAINER_EXITED,
}
_PROPAGATIONS: dict[str, pb.MountPropagation.ValueType] = {
    "private": pb.PROPAGATION_PRIVATE,
    "rslave": pb.PROPAGATION_HOST_TO_CONTAINER,
    "rshared": pb.PROPAGATION_BIDIRECTIONAL,
}
#: What a kubelet shows of an exit that the engine gives no reason for.
_SUCCEEDED, _FAILED = "Completed", "Error"
#: What a container is stopped with if neither it nor its image names a signal.
_STOP_SIGNAL = "SIGTERM"


def state(container: ContainerRecord) -> pb.ContainerState.ValueType:
    """Where the container is in its life."""
    return _STATES.get(container.state, pb.CONTAINER_UNKNOWN)


def metadata(container: ContainerRecord) -> pb.ContainerMetadata:
    """The container's identity within its pod."""
    return pb.ContainerMetadata(name=container.spec.metadata.name, attempt=container.spec.metadata.attempt)


def _image(container: ContainerRecord) -> pb.ImageSpec:
    spec = container.spec
    return pb.ImageSpec(
        image=spec.image_ref or spec.image,
        user_specified_image=spec.image,
        image_ref=container.image_id,
    )


def listed(container: ContainerRecord) -> pb.Container:
    """A container in a list."""
    return pb.Container(
        id=container.id,
        pod_sandbox_id=container.pod_id,
        metadata=metadata(container),
        image=_image(container),
        image_ref=container.image_id,
        state=state(container),
        created_at=container.created_at,
        labels=container.spec.labels,
        annotations=container.spec.annotations,
        image_id=container.image_id,
    )


def statuses(images: "Images", containers: Iterable[ContainerRecord]) -> list[pb.ContainerStatus]:
    """Containers in full, the same in every call that tells of them.

    Args:
        images: What their images are called now, and what those say.
        containers: The records. To look for an image is to look at all names, so it is done once for each image.
    """

    @cache
    def found(image_id: str) -> tuple[ImageRecord | None, str]:
        image = images.find(image_id)
        config = image.config.config if image else None
        return image.record if image else None, (config.stop_signal if config else None) or _STOP_SIGNAL

    return [status(container, *found(container.image_id)) for container in containers]


def status(container: ContainerRecord, image: ImageRecord | None, stop_signal: str = "") -> pb.ContainerStatus:
    """A container in full.

    Args:
        container: The record.
        image: Its image, if that is still there: gives the name and the digest that users know it by.
        stop_signal: The image's; counts where the container names none.
    """
    spec = container.spec
    message = pb.ContainerStatus(
        id=container.id,
        metadata=metadata(container),
        state=state(container),
        created_at=container.created_at,
        started_at=container.started_at,
        finished_at=container.finished_at,
        exit_code=container.exit_code,
        image=_image(container),
        image_ref=container.image_id,
        reason=_reason(container),
        message=container.message,
        labels=spec.labels,
        annotations=spec.annotations,
        mounts=[mount(each) for each in spec.mounts],
        log_path=container.log_path,
        resources=pb.ContainerResources(linux=resources(container.resources)),
        image_id=container.image_id,
        stop_signal=signals.to_message(spec.stop_signal or stop_signal),
    )
    if image is not None:
        if image.repo_tags:
            message.image.image = image.repo_tags[0]
        if image.repo_digests:
            message.image_ref = image.repo_digests[0]
    if container.user is not None:
        uid, gid, groups = container.user
        message.user.linux.CopyFrom(pb.LinuxContainerUser(uid=uid, gid=gid, supplemental_groups=groups))
    return message


def _reason(container: ContainerRecord) -> str:
    if container.reason or container.state != "exited":
        return container.reason
    return _FAILED if container.exit_code else _SUCCEEDED


def mount(given: Mount) -> pb.Mount:
    """A mount, as it was asked for."""
    message = pb.Mount(
        container_path=given.container_path,
        host_path=given.host_path,
        readonly=given.readonly,
        selinux_relabel=given.selinux_relabel,
        propagation=_PROPAGATIONS[given.propagation],
        uidMappings=pod_messages.mappings(given.uid_mappings),
        gidMappings=pod_messages.mappings(given.gid_mappings),
        recursive_read_only=given.recursive_readonly,
        image_sub_path=given.image_subpath,
    )
    if given.image:
        message.image.image = given.image
    return message


def resources(given: Resources) -> pb.LinuxContainerResources:
    """Limits; one that is not set is zero."""
    return pb.LinuxContainerResources(
        cpu_period=given.cpu_period or 0,
        cpu_quota=given.cpu_quota or 0,
        cpu_shares=given.cpu_shares or 0,
        memory_limit_in_bytes=given.memory_limit or 0,
        oom_score_adj=given.oom_score_adj or 0,
        cpuset_cpus=given.cpuset_cpus,
        cpuset_mems=given.cpuset_mems,
        hugepage_limits=[pb.HugepageLimit(page_size=size, limit=limit) for size, limit in given.hugepages.items()],
        unified=given.unified,
        memory_swap_limit_in_bytes=given.memory_swap_limit or 0,
    )
