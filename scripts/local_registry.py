"""A registry on loopback (Debian's docker-registry), and the mirror files that lead public names to it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

from debian import BIN, link_peers

CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {folder}}}
  delete: {{enabled: true}}
  maintenance: {{uploadpurging: {{enabled: false}}}}
http: {{addr: 127.0.0.1:{port}}}
"""

HOSTS = """\
server = "{server}"

[host."{address}"]
  capabilities = ["pull", "resolve"]
"""


class LocalRegistry:
    """A registry process over a storage directory; a context manager."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder = folder
        self.port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        """``127.0.0.1:port``, as it stands before an image's name."""
        return f"127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        """The registry's URL."""
        return f"http://{self.host}"

    def start(self) -> None:
        """Starts the process and waits until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder.with_name(self.folder.name + ".yml")
        config.write_text(CONFIG.format(folder=self.folder / "data", port=self.port))
        with open(self.folder.with_name(self.folder.name + ".log"), "ab") as log:
            self._process = subprocess.Popen(
                [program(), "serve", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": "/usr/bin:/bin", "OTEL_TRACES_EXPORTER": "none"},
            )
        deadline = time.monotonic() + 20 * int(os.environ.get("MACHINE_SLOWNESS", "1"))
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise OSError(f"docker-registry did not come up on {self.host}; see {log.name}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Ends the process; idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            process.wait(timeout=20)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/v2/", timeout=2) as response:
                return bool(response.status == 200)
        except OSError:
            return False


def program() -> str:
    """The registry's program: set-up's copy, or the machine's."""
    found = shutil.which("docker-registry", path=f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        link_peers(["registry"])
        found = str(BIN / "docker-registry")
    return found


def free_port() -> int:
    """A TCP port of loopback that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def write_mirrors(folder: Path, hosts: list[str], address: str) -> None:
    """Writes containerd-style ``<folder>/<host>/hosts.toml`` files that send pulls for ``hosts`` to ``address``."""
    for host in hosts:
        (folder / host).mkdir(parents=True, exist_ok=True)
        # Naming the mirror as the server too keeps a miss from going out to the real host.
        (folder / host / "hosts.toml").write_text(HOSTS.format(server=address, address=address))
