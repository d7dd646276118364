"""From a ContainerConfig to the engine's ContainerSpec."""

from collections.abc import Iterable
from typing import Literal

from sampan.cri import api_pb2 as pb
from sampan.cri import common_requests as common
from sampan.cri import fields, signals
from sampan.engine.model import ContainerSpec, Device, Metadata, Mount, Security, SecurityProfile
from sampan.errors import InvalidInput

_PROPAGATIONS: dict[int, Literal["private", "rslave", "rshared"]] = {
    pb.PROPAGATION_PRIVATE: "private",
    pb.PROPAGATION_HOST_TO_CONTAINER: "rslave",
    pb.PROPAGATION_BIDIRECTIONAL: "rshared",
}


def container_spec(
    config: pb.ContainerConfig, *, unset_seccomp: Literal["default", "unconfined"], field: str = "config"
) -> ContainerSpec:
    """Translate and check.

    Args:
        config: The container as the kubelet asks for it.
        unset_seccomp: What a container that names no seccomp profile gets.
        field: Path of ``config`` in its request, for messages.

    Raises:
        InvalidInput: With the path of the first field that is wrong.
    """
    context = config.linux.security_context
    path = f"{field}.linux.security_context"
    image = fields.word(config.image.image, f"{field}.image.image", limit=fields.PATH_LIMIT, required=True)
    written = fields.line(
        config.image.user_specified_image, f"{field}.image.user_specified_image", limit=fields.PATH_LIMIT
    )
    return ContainerSpec(
        metadata=_metadata(config, f"{field}.metadata"),
        image=written or image,
        image_ref=image,
        command=fields.arguments(config.command, f"{field}.command"),
        args=fields.arguments(config.args, f"{field}.args"),
        working_dir=fields.inside(config.working_dir, f"{field}.working_dir"),
        envs=_envs(config.envs, f"{field}.envs"),
        mounts=_mounts(config.mounts, f"{field}.mounts"),
        devices=_devices(config.devices, f"{field}.devices"),
        cdi_devices=fields.lines((device.name for device in config.CDI_devices), f"{field}.CDI_devices"),
        labels=fields.strings(config.labels, f"{field}.labels"),
        annotations=fields.strings(config.annotations, f"{field}.annotations"),
        log_path=fields.relative(config.log_path, f"{field}.log_path"),
        stdin=config.stdin,
        stdin_once=config.stdin_once,
        tty=config.tty,
        resources=common.resources(config.linux.resources, f"{field}.linux.resources"),
        security=_security(context, path, unset_seccomp),
        namespaces=common.namespaces(context.namespace_options, f"{path}.namespace_options", pod=False),
        stop_signal=signals.to_engine(config.stop_signal, f"{field}.stop_signal"),
    )


def _metadata(config: pb.ContainerConfig, field: str) -> Metadata:
    if not config.HasField("metadata"):
        raise InvalidInput("is missing", field=field)
    name = fields.line(config.metadata.name, f"{field}.name", required=True)
    return Metadata(name=name, attempt=config.metadata.attempt)


def _envs(given: Iterable[pb.KeyValue], field: str) -> tuple[tuple[str, str], ...]:
    found = []
    for number, each in enumerate(fields.listed(given, field, limit=1 << 16)):
        key = fields.text(each.key, f"{field}[{number}].key", limit=fields.PATH_LIMIT, required=True)
        if "=" in key:
            raise InvalidInput(f"{key[:60]!r} holds =", field=f"{field}[{number}].key")
        found.append((key, fields.text(each.value, f"{field}[{number}].value", limit=fields.ARGUMENT_LIMIT)))
    if sum(len(key) + len(value) for key, value in found) > fields.ARGUMENTS_LIMIT:
        raise InvalidInput(f"is longer than {fields.ARGUMENTS_LIMIT} bytes in all", field=field)
    return tuple(found)


def _mounts(given: Iterable[pb.Mount], field: str) -> tuple[Mount, ...]:
    return tuple(_mount(mount, f"{field}[{number}]") for number, mount in enumerate(fields.listed(given, field)))


def _mount(mount: pb.Mount, field: str) -> Mount:
    image = fields.word(mount.image.image, f"{field}.image.image", limit=fields.PATH_LIMIT)
    propagation = fields.choice(_PROPAGATIONS, mount.propagation, f"{field}.propagation")
    host_path = fields.absolute(mount.host_path, f"{field}.host_path", required=not image)
    if image and host_path:
        raise InvalidInput("excludes host_path", field=f"{field}.image")
    if mount.image_sub_path and not image:
        raise InvalidInput("needs image", field=f"{field}.image_sub_path")
    if mount.recursive_read_only:
        if not mount.readonly:
            raise InvalidInput("needs readonly", field=f"{field}.recursive_read_only")
        if propagation != "private":
            raise InvalidInput("needs private propagation", field=f"{field}.recursive_read_only")
    return Mount(
        container_path=fields.inside(mount.container_path, f"{field}.container_path", required=True),
        host_path=host_path,
        readonly=mount.readonly,
        recursive_readonly=mount.recursive_read_only,
        selinux_relabel=mount.selinux_relabel,
        propagation=propagation,
        image=image,
        image_subpath=fields.relative(mount.image_sub_path, f"{field}.image_sub_path"),
        uid_mappings=common.id_mappings(mount.uidMappings, f"{field}.uidMappings"),
        gid_mappings=common.id_mappings(mount.gidMappings, f"{field}.gidMappings"),
    )


def _devices(given: Iterable[pb.Device], field: str) -> tuple[Device, ...]:
    found = []
    for number, device in enumerate(fields.listed(given, field)):
        at = f"{field}[{number}]"
        letters = device.permissions
        if not letters or len(set(letters)) != len(letters) or set(letters) - set("rwm"):
            raise InvalidInput(f"{letters[:60]!r} is not letters of rwm", field=f"{at}.permissions")
        host_path = fields.absolute(device.host_path, f"{at}.host_path", required=True)
        inside = fields.inside(device.container_path, f"{at}.container_path") or host_path
        found.append(Device(host_path=host_path, container_path=inside, permissions=letters))
    return tuple(found)


def _security(
    context: pb.LinuxContainerSecurityContext, field: str, unset_seccomp: Literal["default", "unconfined"]
) -> Security:
    user = common.user_id(context.run_as_user, f"{field}.run_as_user") if context.HasField("run_as_user") else None
    username = fields.word(context.run_as_username, f"{field}.run_as_username")
    if context.HasField("run_as_group") and user is None and not username:
        raise InvalidInput("needs run_as_user or run_as_username", field=f"{field}.run_as_group")
    wanted = context.capabilities
    return Security(
        privileged=context.privileged,
        user=user,
        group=common.user_id(context.run_as_group, f"{field}.run_as_group")
        if context.HasField("run_as_group")
        else None,
        # A kubelet gives both when the pod names an id and the image a name: the pod's word counts.
        username=username if user is None else "",
        supplemental_groups=common.groups(context.supplemental_groups, f"{field}.supplemental_groups"),
        supplemental_groups_policy=fields.choice(
            common.POLICIES, context.supplemental_groups_policy, f"{field}.supplemental_groups_policy"
        ),
        readonly_rootfs=context.readonly_rootfs,
        no_new_privileges=context.no_new_privs,
        add_capabilities=fields.lines(wanted.add_capabilities, f"{field}.capabilities.add_capabilities"),
        drop_capabilities=fields.lines(wanted.drop_capabilities, f"{field}.capabilities.drop_capabilities"),
        add_ambient_capabilities=fields.lines(
            wanted.add_ambient_capabilities, f"{field}.capabilities.add_ambient_capabilities"
        ),
        seccomp=_seccomp(context, field, unset_seccomp),
        apparmor=_apparmor(context, field),
        selinux=common.selinux(context.selinux_options, f"{field}.selinux_options")
        if context.HasField("selinux_options")
        else None,
        # A kubelet sends the lists in full; an empty one is a pod's "procMount: Unmasked".
        masked_paths=fields.paths(context.masked_paths, f"{field}.masked_paths"),
        readonly_paths=fields.paths(context.readonly_paths, f"{field}.readonly_paths"),
    )


def _seccomp(
    context: pb.LinuxContainerSecurityContext, field: str, unset: Literal["default", "unconfined"]
) -> SecurityProfile:
    if context.HasField("seccomp"):
        return common.profile(context.seccomp, f"{field}.seccomp", path=True)
    named = common.named_profile(context.seccomp_profile_path, f"{field}.seccomp_profile_path", path=True)
    return named or SecurityProfile(unset)


def _apparmor(context: pb.LinuxContainerSecurityContext, field: str) -> SecurityProfile:
    if context.HasField("apparmor"):
        return common.profile(context.apparmor, f"{field}.apparmor", path=False)
    named = common.named_profile(context.apparmor_profile, f"{field}.apparmor_profile", path=False)
    return named or SecurityProfile()
