"""AppArmor: profiles taken on, refused, enforced. In the virtual machine, or on any machine that runs AppArmor."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import oci_image
import pytest
import test_images
from cri_daemon import Daemon, private_daemon
from local_registry import LocalRegistry

from sampan.cri import api_pb2 as pb
from sampan.engine.apparmor import TEXT
from sampan.linux import apparmor
from sampan.runtime.labels import DEFAULT_PROFILE

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not apparmor.enabled(), reason="this kernel does not run AppArmor"),
    pytest.mark.skipif(not apparmor.parser(), reason="apparmor_parser is not installed"),
]

LAUNCH = Path(__file__).parents[2] / "src/sampan/cli/runtime_launch.py"
QUIET = "sampan-test-no-writing"
#: It may execute one program only: who executes anything before that program has lost.
NARROW = "sampan-test-narrow"
PROFILES = f"""
profile {QUIET} flags=(attach_disconnected) {{
  file,
  signal (receive) peer=unconfined,
  deny /** w,
}}
profile {NARROW} flags=(attach_disconnected) {{
  /** rm,
  signal (receive) peer=unconfined,
  /bin/sh ix,
}}
"""
LABEL = "read label < /proc/self/attr/current; echo $label"


@pytest.fixture(scope="module", autouse=True)
def _profiles() -> Iterator[None]:
    apparmor.load(PROFILES)
    apparmor.load(TEXT)
    yield
    parser = apparmor.parser()
    subprocess.run([parser, "--remove"], input=PROFILES, text=True, check=True, capture_output=True)


class Bundle:
    """One container of `sampan-runtime`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "rootfs/bin").mkdir(parents=True)
        (path / "rootfs/tmp").mkdir()
        shutil.copy("/bin/busybox", path / "rootfs/bin/busybox")
        # A copy: AppArmor sees the path that a link leads to.
        shutil.copy("/bin/busybox", path / "rootfs/bin/sh")
        self.command("spec")

    def command(self, *words: str, code: int = 0) -> str:
        line = [sys.executable, "-I", "-S", str(LAUNCH), "--root", str(self.path / "state"), *words]
        ended = subprocess.run(line, cwd=self.path, stdin=-3, capture_output=True, text=True, check=False)
        assert ended.returncode == code, ended
        return ended.stdout + ended.stderr

    def configure(self, profile: str, script: str, **process: Any) -> None:
        config = json.loads((self.path / "config.json").read_text())
        config["process"] |= {"apparmorProfile": profile, "args": ["/bin/sh", "-c", script], "terminal": False}
        config["process"] |= process
        config["linux"]["cgroupsPath"] = f"/sampan-test-apparmor-{os.getpid()}"
        config["linux"]["readonlyPaths"] = config["linux"]["maskedPaths"] = []
        config["root"]["readonly"] = False
        for mount in config["mounts"]:  # what is denied is denied by the profile alone
            mount["options"] = [option for option in mount.get("options", []) if option != "ro"]
        (self.path / "config.json").write_text(json.dumps(config))

    def run(self, profile: str, script: str, *, code: int = 0, **process: Any) -> str:
        self.configure(profile, script, **process)
        return self.command("run", "c1", code=code)


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    made = Bundle(tmp_path / "bundle")
    yield made
    made.command("delete", "--force", "c1")
    assert not os.path.exists(f"/sys/fs/cgroup/sampan-test-apparmor-{os.getpid()}")


@pytest.mark.parametrize("narrowed", [False, True], ids=["", "no_new_privs"])
@pytest.mark.parametrize("profile", [QUIET, NARROW, DEFAULT_PROFILE])
def test_the_program_runs_under_its_profile(bundle: Bundle, profile: str, narrowed: bool) -> None:
    assert bundle.run(profile, LABEL, noNewPrivileges=narrowed) == f"{profile} (enforce)\n"


@pytest.mark.parametrize("profile", ["", "unconfined"])
def test_the_unconfined(bundle: Bundle, profile: str) -> None:
    assert bundle.run(profile, LABEL) == "unconfined\n"


def test_a_profile_is_enforced(bundle: Bundle) -> None:
    assert "Permission denied" in bundle.run(QUIET, "echo x > /tmp/file", code=1)
    assert not (bundle.path / "rootfs/tmp/file").exists()
    assert bundle.run(DEFAULT_PROFILE, "echo x > /tmp/file") == ""
    assert (bundle.path / "rootfs/tmp/file").exists()


def test_a_profile_that_the_kernel_lacks_is_named_and_nothing_is_left(bundle: Bundle) -> None:
    said = bundle.run("sampan-test-absent", "exit 0", code=1)
    assert "AppArmor profile at sampan-test-absent: ENOENT: the kernel has no such profile" in said
    assert json.loads(bundle.command("list", "--format", "json")) in (None, [])


def test_exec_is_confined_as_it_asks(bundle: Bundle) -> None:
    bundle.configure(QUIET, "read forever < /tmp/fifo")
    os.mkfifo(bundle.path / "rootfs/tmp/fifo")
    line = [sys.executable, "-I", "-S", str(LAUNCH), "--root", str(bundle.path / "state"), "run", "-d", "c1"]
    subprocess.run(line, cwd=bundle.path, stdin=-3, stdout=-3, stderr=-3, check=True)
    assert bundle.command("exec", "c1", "/bin/sh", "-c", LABEL) == f"{QUIET} (enforce)\n"
    assert bundle.command("exec", "--apparmor", NARROW, "c1", "/bin/sh", "-c", LABEL) == f"{NARROW} (enforce)\n"
    assert "the kernel has no such profile" in bundle.command("exec", "--apparmor", "none", "c1", "/bin/sh", code=255)


def test_what_the_default_denies_to_root_with_every_right(bundle: Bundle) -> None:
    every = sorted(f"CAP_{name}" for name in "SYS_ADMIN DAC_OVERRIDE NET_ADMIN SYS_RESOURCE KILL FOWNER".split())
    rights = dict.fromkeys(("bounding", "effective", "permitted"), every)
    tries = {
        "mount": "/bin/busybox mount -t tmpfs none /tmp",
        "sysctl": "echo 1 > /proc/sys/kernel/panic",
        "vm": "echo 1 > /proc/sys/vm/swappiness",
        "sysrq": "echo h > /proc/sysrq-trigger",
        "sysfs": "echo x > /sys/kernel/uevent_helper",
        "firmware": "/bin/busybox ls /sys/kernel/security/apparmor",
    }
    script = "; ".join(f"{{ {work}; }} 2>/dev/null && echo {name}" for name, work in tries.items())
    assert bundle.run(DEFAULT_PROFILE, f"{script}; echo end", capabilities=rights) == "end\n"
    allowed = "/bin/busybox sleep 9 & kill $! && echo x > /tmp/y && echo 9 > /proc/sys/kernel/msgmni && echo fine"
    assert bundle.run(DEFAULT_PROFILE, allowed, capabilities=rights) == "fine\n"


def test_text_that_is_no_profile_is_refused_in_the_parsers_words() -> None:
    with pytest.raises(OSError, match="syntax error") as caught:
        apparmor.load("profile broken {{{")
    assert str(caught.value.filename).endswith("apparmor_parser")
    assert not apparmor.loaded("broken")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with private_daemon("sampanarmor0", "10.89.80.0/24") as server:
        server.start()
        yield server


def test_profiles_over_cri(daemon: Daemon, tmp_path: Path) -> None:
    subprocess.run([apparmor.parser(), "--remove"], input=TEXT, text=True, check=True, capture_output=True)
    assert not apparmor.loaded(DEFAULT_PROFILE)
    with LocalRegistry(tmp_path / "registry") as registry:
        oci_image.push(test_images.busybox_image(Path("/bin/busybox")), registry.address, "demo/busybox", "1")
        image = pb.ImageSpec(image=f"{registry.host}/demo/busybox:1")
        daemon.images.PullImage(pb.PullImageRequest(image=image))
    runtime = daemon.runtime
    config = pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name="pod", uid="uid", namespace="default"),
        log_directory=str(daemon.folder / "logs"),
        linux=pb.LinuxPodSandboxConfig(security_context=pb.LinuxSandboxSecurityContext(privileged=True)),
    )
    pod = runtime.RunPodSandbox(pb.RunPodSandboxRequest(config=config)).pod_sandbox_id
    kinds = pb.SecurityProfile
    cases = {
        DEFAULT_PROFILE: pb.LinuxContainerSecurityContext(),
        f"{DEFAULT_PROFILE} ": pb.LinuxContainerSecurityContext(apparmor_profile="runtime/default"),
        "unconfined": pb.LinuxContainerSecurityContext(apparmor=kinds(profile_type=kinds.Unconfined)),
        "unconfined ": pb.LinuxContainerSecurityContext(privileged=True),
        QUIET: pb.LinuxContainerSecurityContext(
            apparmor=kinds(profile_type=kinds.Localhost, localhost_ref=QUIET), apparmor_profile="unconfined"
        ),
    }
    for number, (label, context) in enumerate(cases.items()):
        container = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=f"c{number}"),
            image=image,
            command=["/bin/sleep", "1000"],
            linux=pb.LinuxContainerConfig(security_context=context),
        )
        request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=container, sandbox_config=config)
        made = runtime.CreateContainer(request).container_id
        runtime.StartContainer(pb.StartContainerRequest(container_id=made))
        ran = runtime.ExecSync(pb.ExecSyncRequest(container_id=made, cmd=["/bin/cat", "/proc/self/attr/current"]))
        wanted = label.strip()
        assert ran.stdout.decode().strip() == (wanted if wanted == "unconfined" else f"{wanted} (enforce)"), number
    runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
