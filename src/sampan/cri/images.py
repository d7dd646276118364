"""Images: listed, pulled, removed."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import grpc
import msgspec

from sampan.cri import api_pb2 as pb
from sampan.cri import fields, image_messages, lists
from sampan.engine.engine import Engine
from sampan.engine.model import ImageRecord
from sampan.errors import NotFound

if TYPE_CHECKING:
    from sampan.registry import Credentials

#: Registries' tokens are a few KiB; nobody's are this large.
_SECRET_LIMIT = 64 << 10


class Images:
    """Calls about images.

    Args:
        engine: The engine.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def list_images(self, request: pb.ListImagesRequest, _context: grpc.ServicerContext) -> pb.ListImagesResponse:
        """Images that pass the filter."""
        return pb.ListImagesResponse(images=self._listed(request.filter))

    def stream_images(
        self, request: pb.StreamImagesRequest, _context: grpc.ServicerContext
    ) -> Iterator[pb.StreamImagesResponse]:
        """The same in pieces."""
        for piece in lists.pieces(self._listed(request.filter)):
            yield pb.StreamImagesResponse(images=piece)

    def _listed(self, wanted: pb.ImageFilter) -> list[pb.Image]:
        name = fields.word(wanted.image.image, "filter.image.image", limit=fields.PATH_LIMIT)
        if not name:
            return [image_messages.image(record) for record in self._engine.images.list()]
        found = self._find(name)
        return [image_messages.image(found)] if found else []

    def image_status(self, request: pb.ImageStatusRequest, _context: grpc.ServicerContext) -> pb.ImageStatusResponse:
        """One image; an empty answer when there is none."""
        record = self._find(_name(request.image))
        if record is None:
            return pb.ImageStatusResponse()
        response = pb.ImageStatusResponse(image=image_messages.image(record))
        if request.verbose:
            document = {"chainID": "", "imageSpec": msgspec.to_builtins(self._engine.images.config(record.id))}
            response.info["info"] = msgspec.json.encode(document).decode()
        return response

    def _find(self, name: str) -> ImageRecord | None:
        try:
            return self._engine.images.get(name)
        except NotFound:
            return None

    def pull_image(self, request: pb.PullImageRequest, _context: grpc.ServicerContext) -> pb.PullImageResponse:
        """Pull, with the kubelet's credentials if it gives any."""
        name = _name(request.image)
        fields.strings(request.image.annotations, "image.annotations")
        credentials = _credentials(request.auth) if request.HasField("auth") else None
        image = self._engine.images.pull(name, credentials=credentials, by_digest=True)
        return pb.PullImageResponse(image_ref=image.id)

    def remove_image(self, request: pb.RemoveImageRequest, _context: grpc.ServicerContext) -> pb.RemoveImageResponse:
        """Remove; an image that is gone is no error."""
        try:
            self._engine.images.remove(_name(request.image))
        except NotFound:
            pass
        return pb.RemoveImageResponse()

    def image_fs_info(self, _request: pb.ImageFsInfoRequest, _context: grpc.ServicerContext) -> pb.ImageFsInfoResponse:
        """Usage of the file system of layers, on which containers' writable layers are too."""
        usage = self._engine.images.usage()
        message = pb.FilesystemUsage(
            timestamp=time.time_ns(),
            fs_id=pb.FilesystemIdentifier(mountpoint=usage.path),
            used_bytes=pb.UInt64Value(value=usage.bytes),
            inodes_used=pb.UInt64Value(value=usage.inodes),
        )
        return pb.ImageFsInfoResponse(image_filesystems=[message], container_filesystems=[message])


def _name(spec: pb.ImageSpec) -> str:
    return fields.word(spec.image, "image.image", limit=fields.PATH_LIMIT, required=True)


def _credentials(auth: pb.AuthConfig) -> "Credentials | None":
    # Imported when the first pull needs it: an idle daemon does without.
    from sampan.registry import Credentials

    for name in ("username", "server_address"):
        fields.line(getattr(auth, name), f"auth.{name}", limit=fields.PATH_LIMIT)
    for name in ("password", "auth", "identity_token", "registry_token"):
        fields.text(getattr(auth, name), f"auth.{name}", limit=_SECRET_LIMIT)
    return Credentials.from_cri(
        username=auth.username,
        password=auth.password,
        auth=auth.auth,
        server_address=auth.server_address,
        identity_token=auth.identity_token,
        registry_token=auth.registry_token,
    )
