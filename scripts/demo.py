"""Shows Sampan's main job, a pod's life over the Kubernetes Container Runtime Interface, and checks each thing it says.

Two images from Debian packages go to a registry on loopback; a daemon on private directories pulls them and runs two
web servers in one pod; the daemon is killed and comes back; everything is removed, and the machine is looked over for
anything left. Ends with a non-zero status at the first thing that is not as said.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import test_images
from cri_client import CriClient, container_config, pod_config
from cri_servers import Sampan, discard, own_network
from debian import WORK
from local_registry import LocalRegistry, free_port
from machine_state import MachineState, settled_since

from sampan.cri import api_pb2 as pb

MEMORY_LIMIT = 64 << 20
CPU_PERIOD = 100_000
CPU_QUOTA = 10_000  # of each period: a tenth of a CPU
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+(Z|[+-]\d\d:\d\d) (stdout|stderr) [FP] .*")


class NotAsSaid(Exception):
    """A step's outcome differs from what the demo says."""


class Narrator:
    """Prints the steps, what is seen, and what has been checked."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._colour = sys.stdout.isatty()
        self._steps = 0

    def step(self, text: str) -> None:
        """Opens a step."""
        self._steps += 1
        print(f"\n{self._paint('1', f'{self._steps}. {text}')}", flush=True)

    def show(self, text: str) -> None:
        """Shows lines as they are."""
        for line in text.rstrip().splitlines():
            print(f"     {self._paint('2', line)}", flush=True)

    def check(self, true: object, said: str) -> None:
        """Says what is true, or ends the demo."""
        if not true:
            raise NotAsSaid(said)
        print(f"   {self._paint('32', '✓')} {said}", flush=True)

    def seconds(self) -> float:
        """Time since the beginning."""
        return time.monotonic() - self._began

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour else text


class Demo:
    """The steps, in their order; each leaves what the next ones need on ``self``."""

    def __init__(self, folder: Path, registry: LocalRegistry) -> None:
        self.say = Narrator()
        self.folder = folder
        self.logs = folder / "logs"
        self.registry = registry
        self.names = [f"{registry.host}/demo/busybox:1", f"{registry.host}/demo/web:1"]
        bridge, subnet = own_network("spdemo")
        self.daemon = Sampan(folder / "sampan", folder / "certs.d", bridge=bridge, subnet=subnet)
        self.host_port = free_port()
        self.client: CriClient
        self.pod_id = ""
        self.address = ""
        self.servers: dict[str, str] = {}

    def run(self) -> None:
        """The whole demo."""
        before = MachineState.take()
        try:
            self._images()
            self._start_daemon()
            self._pull()
            self._run_pod()
            self._fetch_pages()
            self._look_inside()
            self._limits()
            self._survive_a_crash()
            self._remove()
        except BaseException:
            self._sweep()
            raise
        finally:
            self.daemon.stop()
            self.registry.stop()
        self._nothing_left(before)
        print(f"\nAll as said, in {self.say.seconds():.1f} s.")

    def _images(self) -> None:
        self.say.step("Build two images from Debian packages, push them to a registry on loopback")
        images = test_images.demo_images()
        self.registry.start()
        for name, digest in test_images.push_all(images, self.registry.address).items():
            size = sum(len(layer.data) for layer in images[name].layers)
            self.say.show(f"{self.registry.host}/{name}  {len(images[name].layers)} layers, {size >> 10} KiB  {digest}")
        self.say.check(True, f"docker-registry serves them on {self.registry.host}")

    def _start_daemon(self) -> None:
        self.say.step("Start `sampan daemon` on a private root, state directory and socket")
        began = time.monotonic()
        self.daemon.start()
        self.client = CriClient(self.daemon.endpoint)
        version = self.client.runtime.Version(pb.VersionRequest())
        self.say.show(f"{self.daemon.endpoint}")
        spent = 1000 * (time.monotonic() - began)
        name = f"{version.runtime_name} {version.runtime_version}"
        said = f"{name} speaks CRI {version.runtime_api_version}, after {spent:.0f} ms"
        self.say.check(version.runtime_name == "sampan" and version.runtime_api_version == "v1", said)
        status = self.client.runtime.Status(pb.StatusRequest()).status
        conditions = {item.type: item.status for item in status.conditions}
        self.say.check(
            all(conditions.get(name) for name in ("RuntimeReady", "NetworkReady")), "runtime and network are ready"
        )

    def _pull(self) -> None:
        self.say.step("PullImage: both images, from the registry")
        for name in self.names:
            began = time.monotonic()
            reference = self.client.pull(name)
            self.say.show(f"{name} -> {reference} in {1000 * (time.monotonic() - began):.0f} ms")
        listed = self.client.images.ListImages(pb.ListImagesRequest()).images
        tags = {tag for image in listed for tag in image.repo_tags}
        self.say.check(set(self.names) <= tags, "ListImages knows both")

    def _run_pod(self) -> None:
        self.say.step("RunPodSandbox on a bridge network with a host port; two web servers in the one pod")
        pod = pod_config("demo", self.logs, {self.host_port: 8082})
        began = time.monotonic()
        self.pod_id = self.client.run_pod(pod)
        limits = pb.LinuxContainerResources(
            cpu_period=CPU_PERIOD, cpu_quota=CPU_QUOTA, memory_limit_in_bytes=MEMORY_LIMIT
        )
        for name, port in (("web1", 8081), ("web2", 8082)):
            environment = {"PORT": str(port), "PAGE": f"this is {name}"}
            resources = limits if name == "web1" else None
            config = container_config(name, self.names[1], environment=environment, resources=resources)
            self.servers[name] = self.client.create(self.pod_id, config, pod)
            self.client.start(self.servers[name])
        spent = 1000 * (time.monotonic() - began)
        self.address = self.client.pod(self.pod_id).network.ip
        self.say.show(f"pod {self.pod_id[:12]} has {self.address}; host port {self.host_port} leads to web2")
        states = [self.client.container(item).state for item in self.servers.values()]
        self.say.check(
            states == [pb.ContainerState.CONTAINER_RUNNING] * 2,
            f"pod and both containers run, {spent:.0f} ms after the first call",
        )

    def _fetch_pages(self) -> None:
        self.say.step("Fetch the pages")
        for name, port in (("web1", 8081), ("web2", 8082)):
            self._page(name, f"http://{self.address}:{port}/")
        self._page("web2", f"http://127.0.0.1:{self.host_port}/")

    def _look_inside(self) -> None:
        self.say.step("ExecSync `ps` in web1: the pod shares one PID namespace")
        result = self.client.exec_sync(self.servers["web1"], ["ps", "-o", "pid,args"])
        text = result.stdout.decode()
        self.say.show(text)
        self.say.check(result.exit_code == 0, "ps ran and exited with 0")
        self.say.check(re.search(r"^\s*1 .*pause", text, re.MULTILINE), "process 1 is the pod's pause process")
        self.say.check(text.count("nginx: master process") == 2, "both servers are there")
        script = "for kind in net ipc pid; do readlink /proc/self/ns/$kind; done"
        links = [self._exec(name, script) for name in self.servers]
        self.say.check(links[0] == links[1], "they share network, IPC and PID namespaces")
        self.say.step("The logs on disk, in CRI format")
        for name in self.servers:
            lines = self._log(name)
            self.say.show("\n".join(f"{name}.log: {line}" for line in lines[-2:]))
            self.say.check(lines and all(LOG_LINE.fullmatch(line) for line in lines), f"{name}.log: {len(lines)} lines")
        seen = _wait(lambda: any('"GET / HTTP' in line for line in self._log("web1")))
        self.say.check(seen, "web1's log has the request made before")

    def _limits(self) -> None:
        self.say.step("web1's limits as the kernel sees them, and ContainerStats")
        quota, period, memory = _kernel_limits(_process_of(self.servers["web1"]))
        self.say.show(f"CPU {quota} of every {period} us; memory {memory} bytes")
        self.say.check(quota / period == CPU_QUOTA / CPU_PERIOD, "a tenth of a CPU")
        self.say.check(memory == MEMORY_LIMIT, f"{MEMORY_LIMIT >> 20} MiB of memory")
        request = pb.ContainerStatsRequest(container_id=self.servers["web1"])
        stats = self.client.runtime.ContainerStats(request).stats
        cpu, used = stats.cpu.usage_core_nano_seconds.value, stats.memory.working_set_bytes.value
        layer = stats.writable_layer.used_bytes.value
        self.say.show(f"CPU time {cpu / 1e6:.1f} ms; working set {used >> 10} KiB; writable layer {layer} bytes")
        self.say.check(cpu > 0 and 0 < used < MEMORY_LIMIT, "the figures are plausible")

    def _survive_a_crash(self) -> None:
        self.say.step("kill -9 the daemon, start it again")
        started = {name: self.client.container(item).started_at for name, item in self.servers.items()}
        lines = {name: len(self._log(name)) for name in self.servers}
        self.client.close()
        self.daemon.kill()
        self._page("web1", f"http://{self.address}:8081/", "with no daemon, ")
        self.daemon.start()
        self.client = CriClient(self.daemon.endpoint)
        pods = {item.id: item.state for item in self.client.pods()}
        self.say.check(pods == {self.pod_id: pb.PodSandboxState.SANDBOX_READY}, "the pod is there and ready")
        for name, item in self.servers.items():
            status = self.client.container(item)
            same = status.state == pb.ContainerState.CONTAINER_RUNNING and status.started_at == started[name]
            self.say.check(same, f"{name} is the same container, still running")
        for name, port in (("web1", 8081), ("web2", 8082)):
            self._page(name, f"http://{self.address}:{port}/")
            # nginx logs a request after it has answered it.
            self.say.check(_wait(lambda: len(self._log(name)) > lines[name]), f"{name}'s log went on")  # noqa: B023
        self.say.check(self._exec("web2", "echo still here") == "still here", "ExecSync works")

    def _remove(self) -> None:
        self.say.step("Stop and remove everything")
        for name, item in self.servers.items():
            self.client.stop(item)
            status = self.client.container(item)
            exited = status.state == pb.ContainerState.CONTAINER_EXITED
            self.say.check(exited and status.exit_code == 0, f"{name} ended by itself when asked (exit status 0)")
            self.client.remove(item)
        self.client.stop_pod(self.pod_id)
        self.client.remove_pod(self.pod_id)
        for name in self.names:
            self.client.images.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image=name)))
        left = [
            *self.client.pods(),
            *self.client.containers(),
            *self.client.images.ListImages(pb.ListImagesRequest()).images,
        ]
        self.say.check(not left, "no pod, container or image is listed")
        self.client.close()
        # A bridge outlives its pods by CNI's rules: whoever configured the network takes it away.
        subprocess.run(["ip", "link", "del", self.daemon.bridge], capture_output=True, check=False)

    def _sweep(self) -> None:
        """After a failure: removes the pods that are there, as far as the daemon still serves."""
        with contextlib.suppress(grpc.RpcError, AttributeError):
            for pod in self.client.pods():
                self.client.stop_pod(pod.id)
                self.client.remove_pod(pod.id)

    def _nothing_left(self, before: MachineState) -> None:
        self.say.step("Look the machine over")
        left = [line for line in settled_since(before) if not line.startswith(f"file: {self.folder}")]
        self.say.show("\n".join(left))
        self.say.check(not left, "no mount, link, namespace, NAT rule, cgroup, process or file is left")
        names = sorted(path.name for path in (self.folder / "sampan" / "state").rglob("*") if path.is_file())
        self.say.check(
            not [name for name in names if name.endswith((".json", ".sock"))], "the state directory holds no pod"
        )

    def _page(self, name: str, address: str, remark: str = "") -> None:
        page = _fetch(address)
        self.say.check(page == f"this is {name}\n", f"{remark}{address} answers: {page.strip()}")

    def _exec(self, name: str, script: str) -> str:
        result = self.client.exec_sync(self.servers[name], ["sh", "-c", script])
        if result.exit_code:
            raise NotAsSaid(f"`{script}` in {name} exits with 0: {result.stderr.decode(errors='replace')}")
        return result.stdout.decode().strip()

    def _log(self, name: str) -> list[str]:
        return (self.logs / f"{name}.log").read_text().splitlines()


def _wait(ready: Callable[[], bool], seconds: float = 5) -> bool:
    """Whether something becomes true within a time."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _fetch(address: str, seconds: float = 20) -> str:
    """A page's text; a server that is just starting gets some time to listen."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + seconds
    while True:
        try:
            with opener.open(address, timeout=5) as response:
                return str(response.read().decode())
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > deadline:
                raise NotAsSaid(f"{address} answers ({error})") from error
            time.sleep(0.05)


def _process_of(container_id: str) -> int:
    """The host's number of a process in the container's cgroup."""
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit() and container_id in Path(f"/proc/{name}/cgroup").read_text():
                return int(name)
    raise NotAsSaid(f"some process is in a cgroup named for container {container_id}")


def _kernel_limits(pid: int) -> tuple[int, int, int]:
    """CPU quota, CPU period and memory limit of the process's cgroup; version 1 or 2."""
    groups = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        groups.update(dict.fromkeys(controllers.split(","), path))
    if "cpu" in groups:
        cpu, memory = Path(f"/sys/fs/cgroup/cpu{groups['cpu']}"), Path(f"/sys/fs/cgroup/memory{groups['memory']}")
        names = (cpu / "cpu.cfs_quota_us", cpu / "cpu.cfs_period_us", memory / "memory.limit_in_bytes")
        quota, period, limit = (int(path.read_text()) for path in names)
        return quota, period, limit
    folder = Path(f"/sys/fs/cgroup{groups['']}")
    quota_text, period_text = (folder / "cpu.max").read_text().split()
    return int(quota_text), int(period_text), int((folder / "memory.max").read_text())


@contextlib.contextmanager
def _workspace() -> Iterator[Path]:
    """A directory for the whole demo, gone afterwards; a failed demo leaves its daemon's log under .work."""
    folder = Path(tempfile.mkdtemp(prefix="sampan-demo-"))
    folder.chmod(0o711)
    try:
        yield folder
    except BaseException:
        log = folder / "sampan" / "server.log"
        if log.exists():
            shutil.copyfile(log, WORK / "demo-daemon.log")
            print(f"\nThe daemon's log is in {WORK / 'demo-daemon.log'}", file=sys.stderr)
        raise
    finally:
        discard(folder)


def main() -> int:
    """Runs the demo."""
    if os.geteuid() != 0:
        print("the demo needs root: it makes namespaces, mounts and cgroups", file=sys.stderr)
        return 1
    with _workspace() as folder:
        demo = Demo(folder, LocalRegistry(folder / "registry"))
        try:
            demo.run()
        except NotAsSaid as error:
            print(f"   ✗ not so: {error}", file=sys.stderr)
            raise SystemExit(1) from None
        except grpc.RpcError as error:
            print(f"   ✗ {error.code().name}: {error.details()}", file=sys.stderr)
            raise SystemExit(1) from None
    return 0


if __name__ == "__main__":
    sys.exit(main())
