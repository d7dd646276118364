"""A root of its own and a registry beside, for tests of the `sampan` command on images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from registry_peers import FaultRegistry, Image
from sampan.storage.store import Store


class Here:
    """A root of its own, and a registry."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry = FaultRegistry(str(folder / "registry"))
        self.registry.start()
        self.host = self.registry.address.removeprefix("http://")
        self.auth = folder / "auth.json"

    def put(self, image: Image, name: str, tag: str = "1") -> str:
        image.put_into(self.registry.tree, name, tag)
        return f"{self.host}/{name}:{tag}"

    def command(self, *words: str) -> list[str]:
        root = ["--root", f"{self.folder}/root", "--state", f"{self.folder}/state"]
        return [str(Path(sys.executable).with_name("sampan")), *root, *words]

    def run(self, *words: str, code: int = 0, data: bytes = b"", **env: str) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            self.command(*words),
            input=data,
            capture_output=True,
            timeout=60,
            check=False,
            env={**os.environ, "REGISTRY_AUTH_FILE": str(self.auth), **env},
        )
        assert done.returncode == code, done.stderr.decode()
        assert b"Traceback" not in done.stderr
        return done

    def out(self, *words: str, code: int = 0, data: bytes = b"", **env: str) -> str:
        return self.run(*words, code=code, data=data, **env).stdout.decode()

    def json(self, *words: str) -> dict[str, object]:
        document: dict[str, object] = json.loads(self.out(*words))
        return document

    def store(self) -> Store:
        return Store(f"{self.folder}/root")
