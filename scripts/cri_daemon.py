"""``sampan daemon`` for tests: on private directories, without the command line around it, with clients for it."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar, overload

import grpc
import oci_image
import test_images
from cri_servers import Sampan
from local_registry import LocalRegistry

from sampan.cri import api_pb2 as pb
from sampan.cri.api_pb2_grpc import ImageServiceStub, RuntimeServiceStub

LAUNCH = "import sys; from sampan.daemon.main import run; sys.exit(run(sys.argv[1]))"


class Daemon(Sampan):
    """A daemon and its clients."""

    #: TOML that goes before all tables of the configuration.
    settings = ""
    #: What :meth:`start_with` has it pull.
    image = pb.ImageSpec()

    def command(self) -> list[str]:
        """Starts it by its function."""
        super().command()
        config = self.folder / "config.toml"
        config.write_text(self.settings + config.read_text())
        return [sys.executable, "-c", LAUNCH, str(config)]

    def start_with(self, image: oci_image.Image, registry: LocalRegistry, name: str) -> None:
        """Start it, and have it pull an image.

        Args:
            image: The image.
            registry: Where it is pushed first.
            name: Its repository there.
        """
        oci_image.push(image, registry.address, name, "1")
        self.start()
        self.image = pb.ImageSpec(image=f"{registry.host}/{name}:1")
        self.images.PullImage(pb.PullImageRequest(image=self.image))

    def wrap_runtime(self, script: str, more: str = "") -> Path:
        """Have the handler ``wrapped``, which is a script; before the start.

        Args:
            script: Its text.
            more: Further lines of its table.
        """
        wrapper = self.folder / "wrapper"
        wrapper.write_text(script)
        wrapper.chmod(0o755)
        drop_in = self.folder / "conf.d" / "wrapped.toml"
        drop_in.parent.mkdir()
        drop_in.write_text(f'[runtimes.wrapped]\ntype = "external"\nbinary = "{wrapper}"\n{more}')
        return wrapper

    @property
    def runtime(self) -> RuntimeServiceStub:
        """A fresh client: one made before a restart may be waiting to connect again."""
        return RuntimeServiceStub(grpc.insecure_channel(self.endpoint))  # type: ignore[no-untyped-call]

    @property
    def images(self) -> ImageServiceStub:
        """Likewise."""
        return ImageServiceStub(grpc.insecure_channel(self.endpoint))  # type: ignore[no-untyped-call]

    def remove_pods(self) -> None:
        """Removes every pod, so that a test leaves nothing."""
        runtime = self.runtime
        for pod in runtime.ListPodSandbox(pb.ListPodSandboxRequest()).items:
            runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod.id))

    def children(self) -> list[int]:
        """Its child processes, whichever of its threads started them: the zygote."""
        assert self.process is not None
        files = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(child) for file in files for child in file.read_text().split()]


D = TypeVar("D", bound=Daemon)


@overload
def private_daemon(bridge: str, subnet: str) -> AbstractContextManager[Daemon]: ...
@overload
def private_daemon(bridge: str, subnet: str, kind: type[D]) -> AbstractContextManager[D]: ...
@contextmanager
def private_daemon(bridge: str, subnet: str, kind: type[Any] = Daemon) -> Iterator[Any]:
    """A daemon that is not started yet, in a folder of its own that goes at the end, as do its pods."""
    # pytest's own directories are not searchable by others, and their names are long for a socket.
    with tempfile.TemporaryDirectory(prefix="sampan-cri-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o711)
        daemon = kind(Path(folder), Path(folder) / "certs.d", bridge=bridge, subnet=subnet)
        try:
            yield daemon
        finally:
            try:
                if daemon.process is not None and daemon.process.poll() is None:
                    daemon.remove_pods()
            finally:
                daemon.stop()
                daemon.clean()


@contextmanager
def busybox_daemon(
    kind: type[D], folder: Path, bridge: str, subnet: str, prepare: Callable[[D], object] = lambda _: None
) -> Iterator[D]:
    """A daemon that has started and pulled busybox's image, from a registry in ``folder``.

    Args:
        kind: Its class.
        folder: Of the registry; made.
        bridge: Of its network.
        subnet: Of its network.
        prepare: What is done to it before it starts.
    """
    with LocalRegistry(folder) as registry, private_daemon(bridge, subnet, kind) as daemon:
        prepare(daemon)
        daemon.start_with(test_images.busybox_image(Path("/bin/busybox")), registry, "demo/busybox")
        yield daemon
