"""GetContainerEvents: what happens to pods and containers, in sequence, from the engine's durable record.

A kubelet that comes back is told first what happened while it was away, also if it was we who were away. It takes no
event without the pod's status, so that an event of a pod that is gone has the last one.
"""

from collections.abc import Iterator

import grpc

from sampan.cri import api_pb2 as pb
from sampan.cri import container_messages, pod_messages
from sampan.engine.engine import Engine
from sampan.engine.model import Event, PodRecord
from sampan.errors import NotFound

#: An event of the engine -> events of the interface. Running out of memory is told by the stop that follows it.
_KINDS: dict[str, tuple[pb.ContainerEventType.ValueType, ...]] = {
    "created": (pb.CONTAINER_CREATED_EVENT,),
    "started": (pb.CONTAINER_STARTED_EVENT,),
    "stopped": (pb.CONTAINER_STOPPED_EVENT,),
    "deleted": (pb.CONTAINER_DELETED_EVENT,),
    "pod-created": (pb.CONTAINER_CREATED_EVENT, pb.CONTAINER_STARTED_EVENT),
    "pod-stopped": (pb.CONTAINER_STOPPED_EVENT,),
    "pod-deleted": (pb.CONTAINER_DELETED_EVENT,),
}
#: Seconds after which a follower looks whether its client is still there.
_LOOK = 5.0


class Events:
    """The call about events.

    Args:
        engine: The engine.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def get_container_events(
        self, _request: pb.GetEventsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ContainerEventResponse]:
        """Events until the client leaves, from where one that left a short while ago stopped, or from now on."""
        follower = self._engine.events.follow()
        try:
            if not context.add_callback(follower.close):
                return
            # The headers tell the client that the subscription stands: what it causes from now on, it will be told.
            context.send_initial_metadata(())
            while context.is_active():
                event = follower.get(_LOOK)
                if event is not None:
                    yield from self._messages(event)
                if context.is_active():
                    follower.handed() if event is not None else follower.alive()
        finally:
            follower.leave()

    def _messages(self, event: Event) -> Iterator[pb.ContainerEventResponse]:
        for kind in _KINDS.get(event.kind, ()):
            message = pb.ContainerEventResponse(
                container_id=event.container_id or event.pod_id,
                container_event_type=kind,
                created_at=event.time,
            )
            pod = self._pod(event)
            if pod is not None:
                message.pod_sandbox_status.CopyFrom(pod_messages.status(pod))
                containers = self._engine.containers.list(pod_id=pod.id)
                message.containers_statuses.extend(container_messages.statuses(self._engine.images, containers))
            yield message

    def _pod(self, event: Event) -> PodRecord | None:
        """The pod that an event is about, as it is or was at last."""
        try:
            return self._engine.pods.get(event.pod_id)
        except NotFound:
            return self._engine.events.removed_pod(event.pod_id, event.sequence - 1)
