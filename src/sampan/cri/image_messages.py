"""From the engine's image records to messages."""

from sampan.cri import api_pb2 as pb
from sampan.engine.model import ImageRecord


def image(record: ImageRecord) -> pb.Image:
    """An image with all of its names."""
    message = pb.Image(
        id=record.id,
        repo_tags=record.repo_tags,
        repo_digests=record.repo_digests,
        size=max(record.size, 0),
        spec=pb.ImageSpec(image=record.id),
        pinned=record.pinned,
    )
    user, _, _ = record.user.partition(":")
    if user.isdecimal():
        message.uid.value = min(int(user), (1 << 63) - 1)
    elif user:
        message.username = user
    return message
