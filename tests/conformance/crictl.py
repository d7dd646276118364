"""The real crictl against `sampan daemon`: each command that a node's engineer types, with its output looked at.

The last step has `sampan` list what the daemon made, and crictl list what `sampan` made.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import cri_servers
import go_programs
import test_images
from local_registry import LocalRegistry, free_port


class Tour:
    """One daemon, one crictl, and how often what they said was as it should be."""

    def __init__(self, program: Path, server: cri_servers.Sampan, registry: str) -> None:
        self.program = program
        self.server = server
        self.registry = registry
        self.passed = 0
        self.failed = 0

    def crictl(self, *words: str) -> str:
        """What a command prints; its failure is one of the tour's."""
        command = [str(self.program), "-r", self.server.endpoint, "-i", self.server.endpoint, "-t", "30s", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        self.check(f"crictl {words[0]} exits with 0", done.returncode == 0, done.stderr)
        return done.stdout.strip()

    def check(self, what: str, right: bool, shown: object = "") -> None:
        """Count, and print what is wrong."""
        self.passed += right
        self.failed += not right
        if not right:
            print(f"FAILED: {what}\n{shown}")

    def documents(self, port: int) -> tuple[str, str]:
        """Files of a pod's and of a container's configuration."""
        folder = self.server.folder
        pod = {
            "metadata": {"name": "tour", "namespace": "default", "uid": "tour-1"},
            "log_directory": str(folder / "logs"),
            "port_mappings": [{"container_port": 8081, "host_port": port}],
            "linux": {},
        }
        container = {
            "metadata": {"name": "web"},
            "image": {"image": f"{self.registry}/demo/web:1"},
            "envs": [{"key": "PORT", "value": "8081"}, {"key": "PAGE", "value": "from the tour"}],
            "log_path": "web.log",
            "linux": {"resources": {"memory_limit_in_bytes": 64 << 20}},
        }
        (folder / "pod.json").write_text(json.dumps(pod))
        (folder / "container.json").write_text(json.dumps(container))
        return str(folder / "pod.json"), str(folder / "container.json")

    def run(self) -> None:
        """The tour."""
        port = free_port()
        pod_file, container_file = self.documents(port)
        image = f"{self.registry}/demo/web:1"
        self.check("version names us", "sampan" in self.crictl("version"))
        info = json.loads(self.crictl("info"))
        conditions = {c["type"]: c["status"] for c in info["status"]["conditions"]}
        self.check("info says ready", conditions.get("RuntimeReady") is conditions.get("NetworkReady") is True, info)
        self.crictl("pull", image)
        self.check("images lists it", "demo/web" in self.crictl("images"))
        self.check("inspecti knows it", image in json.loads(self.crictl("inspecti", image))["status"]["repoTags"])
        pod = self.crictl("runp", pod_file)
        container = self.crictl("create", pod, container_file, pod_file)
        self.crictl("start", container)
        self.check("ps lists it", container[:13] in self.crictl("ps"))
        self.check("pods lists it", pod[:13] in self.crictl("pods"))
        inspected = json.loads(self.crictl("inspect", container))
        self.check("inspect says running", inspected["status"]["state"] == "CONTAINER_RUNNING", inspected)
        sandbox = json.loads(self.crictl("inspectp", pod))
        self.check("inspectp knows its address", bool(sandbox["status"]["network"]["ip"]), sandbox)
        self.check("its page comes through the host port", fetch(port) == "from the tour")
        self.check("exec -s prints", self.crictl("exec", "-s", container, "echo", "hello") == "hello")
        self.check("exec over SPDY prints", self.crictl("exec", container, "echo", "spdy") == "spdy")
        streamed = self.crictl("exec", "-r", "websocket", container, "echo", "ws")
        self.check("exec over WebSocket prints", streamed == "ws", streamed)
        self.check("logs has the request", "GET /" in self.crictl("logs", container))
        stats = json.loads(self.crictl("stats", "-o", "json"))["stats"]
        self.check("stats has it", [s["attributes"]["id"] for s in stats] == [container], stats)
        self.command_sees(container)
        self.crictl("stop", container)
        self.check("ps -a says exited", "Exited" in self.crictl("ps", "-a"))
        self.crictl("rm", container)
        self.crictl("stopp", pod)
        self.crictl("rmp", pod)
        one_step = self.crictl("run", container_file, pod_file)
        self.check("run starts both", one_step in self.crictl("ps", "-q"))
        self.crictl("rmp", "-f", self.crictl("pods", "-q"))
        self.crictl("rmi", image)
        self.check(
            "nothing is left", not self.crictl("ps", "-aq") + self.crictl("pods", "-q") + self.crictl("images", "-q")
        )

    def command_sees(self, container: str) -> None:
        """`sampan` and the daemon know of each other's work."""
        sampan = [str(Path(sys.executable).with_name("sampan")), "--config", str(self.server.folder / "config.toml")]
        listed = subprocess.run(
            [*sampan, "-n", "k8s.io", "ps", "-q"], capture_output=True, text=True, check=False
        ).stdout
        self.check("sampan ps sees the daemon's container", container[:12] in listed, listed)
        done = subprocess.run(
            [*sampan, "-n", "k8s.io", "run", "-d", "--name", "made-by-hand", f"{self.registry}/demo/web:1"],
            capture_output=True,
            text=True,
            check=False,
        )
        self.check("sampan run works beside the daemon", done.returncode == 0, done.stderr)
        self.check("crictl ps sees sampan's container", "made-by-hand" in self.crictl("ps"))
        gone = subprocess.run([*sampan, "-n", "k8s.io", "rm", "-f", "made-by-hand"], capture_output=True, check=False)
        self.check("sampan rm removes it", gone.returncode == 0, gone.stderr)
        self.check("crictl ps sees that", "made-by-hand" not in self.crictl("ps", "-a"))


def fetch(port: int) -> str:
    """A page through a host port, as soon as the server listens."""
    deadline = time.monotonic() + 10
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                return str(answer.read().decode().strip())
        except OSError:
            if time.monotonic() > deadline:
                return ""
            time.sleep(0.05)


def main() -> int:
    """Run the tour; the exit code."""
    if not go_programs.have_go():
        print("crictl: skipped, there is no Go to build it with")
        return 0
    program = go_programs.build("cri-tools") / "crictl"
    folder = Path(tempfile.mkdtemp(prefix="sampan-crictl-"))
    folder.chmod(0o711)
    try:
        with LocalRegistry(folder / "registry") as registry:
            test_images.push_all(test_images.demo_images(), registry.address)
            server = cri_servers.Sampan(
                folder / "server", folder / "mirrors", bridge="sampantour0", subnet="10.89.91.0/24"
            )
            try:
                with server:
                    tour = Tour(program, server, registry.host)
                    tour.run()
            finally:
                server.clean()
    finally:
        cri_servers.discard(folder)
    print(f"crictl: {tour.passed} passed, {tour.failed} failed")
    return 1 if tour.failed else 0


if __name__ == "__main__":
    sys.exit(main())
