"""Translation of made-up configurations: a spec, or InvalidInput with a field and one line; never anything else."""

from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import Maker

from sampan.cri import api_pb2 as pb
from sampan.cri import container_messages, pod_messages
from sampan.cri.container_requests import container_spec
from sampan.cri.pod_requests import pod_spec
from sampan.engine.model import ContainerRecord, ContainerSpec, PodRecord, PodSpec
from sampan.errors import InvalidInput

MAKER = Maker("/tmp/a", ["0123"], "busybox")
POD = pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="p"))
CONTAINER = pb.ContainerConfig(metadata=pb.ContainerMetadata(name="c"), image=pb.ImageSpec(image="i"))


def _refused(error: InvalidInput) -> None:
    assert error.field.startswith("config")
    assert len(str(error).splitlines()) == 1


@settings(max_examples=100, deadline=None)
@given(st.one_of(MAKER.disturbed(POD), MAKER.message(POD.DESCRIPTOR)))
def test_pods(config: pb.PodSandboxConfig) -> None:
    try:
        spec: PodSpec = pod_spec(config)
    except InvalidInput as error:
        _refused(error)
        return
    told = pod_messages.status(PodRecord(id="1", spec=spec, handler="", created_at=1, state="ready"))
    assert told.metadata == config.metadata
    assert told.labels == config.labels
    assert told.linux.namespaces.options.pid == config.linux.security_context.namespace_options.pid


@settings(max_examples=100, deadline=None)
@given(st.one_of(MAKER.disturbed(CONTAINER), MAKER.message(CONTAINER.DESCRIPTOR)))
def test_containers(config: pb.ContainerConfig) -> None:
    try:
        spec: ContainerSpec = container_spec(config, unset_seccomp="default")
    except InvalidInput as error:
        _refused(error)
        return
    record = ContainerRecord(id="1", pod_id="2", spec=spec, created_at=1, resources=spec.resources)
    told = container_messages.status(record, None)
    assert told.metadata == config.metadata
    assert told.annotations == config.annotations
    assert told.stop_signal == config.stop_signal
    assert [mount.container_path for mount in told.mounts] == [mount.container_path for mount in config.mounts]
