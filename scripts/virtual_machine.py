"""A virtual machine on this machine's files, with Debian's kernel: other cgroups, other security modules, another init.

The guest's root is this machine's root over 9p, read-only, under an overlay in the guest's memory: it may write
everywhere and nothing of it stays. A new ext4 disk holds /tmp, /root, /var/lib and /var/tmp, since neither an overlay
nor (before Linux 6.3) a tmpfs can do what the tests ask of a file system. One folder is shared both ways, at its path.
The kernel and its modules are unpacked under .work, not installed. Programs are started under their own init or under
systemd; what they say comes through the first serial line, what the kernel says goes to ``console`` in the folder.

The processor is emulated, which is slow and the same everywhere. But the guest's clock counts its own instructions, one
a nanosecond, and runs with the world's only while the guest is idle: to itself it is a machine a few times slower than
this one, however busy this one is, so that what must happen within a second there does. ``VM_KVM=1`` in the
environment uses KVM.
"""

from __future__ import annotations

import gzip
import os
import shlex
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import debian

#: What the initial file system must load to reach the root, before there is a modprobe.
MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4", "9p", "9pnet_virtio", "overlay")
DISK_BYTES = 16 << 30
#: Status of a guest that ended without saying one.
NO_STATUS = 125
#: Without what is slower emulated than not used: strings copied by single bytes, a fifth level of page tables, a check
#: that is switched off and on again at each copy from and to a program.
EMULATED = [
    *("-accel", "tcg,thread=single", "-icount", "shift=0,sleep=on"),
    *("-cpu", "max,erms=off,fsrm=off,la57=off,smap=off"),
]

INIT = """\
#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mkdir -p /proc /dev /lower /upper /root /kept
mount -t proc proc /proc
mount -t devtmpfs dev /dev
while read module; do insmod /modules/$module; done < /modules/order
mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=512000 root /lower
mount -t tmpfs -o size=50% upper /upper
mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work root /root
mount --bind /root{checkout} /kept
mkdir -p /root/mnt
mount -t ext4 -o noatime,user_xattr /dev/vda /root/mnt
for folder in tmp root var/lib var/tmp; do
    mkdir -p /root/mnt/$folder
    mount --bind /root/mnt/$folder /root/$folder
done
chmod 1777 /root/tmp /root/var/tmp
mkdir -p /root{checkout}
mount --move /kept /root{checkout}
mount --bind /root{modules} /root/lib/modules
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 share /root{share}
umount /proc
mount --move /dev /root/dev
exec switch_root /root {program}
"""


@dataclass(frozen=True)
class Kernel:
    """An unpacked Debian kernel.

    Attributes:
        tree: The package's files.
        release: As uname(2) says it.
    """

    tree: Path
    release: str

    @property
    def image(self) -> Path:
        """What the machine boots."""
        return self.tree / "boot" / f"vmlinuz-{self.release}"

    @property
    def modules(self) -> Path:
        """To be the guest's /lib/modules."""
        return self.tree / "lib" / "modules"


def find_kernel() -> Kernel:
    """The kernel that set-up unpacked, with its module index made."""
    images = sorted(debian.DEBS.glob("linux-image-*/boot/vmlinuz-*"))
    if not images:
        raise SystemExit("there is no kernel under .work/debs; run scripts/setup vm")
    kernel = Kernel(images[-1].parents[1], images[-1].name.removeprefix("vmlinuz-"))
    if not (kernel.modules / kernel.release / "modules.dep").exists():
        subprocess.run(["depmod", "-b", str(kernel.tree), kernel.release], check=True)
    return kernel


def initial_files(kernel: Kernel, init: str) -> bytes:
    """The compressed initial file system: busybox, the modules in the order to load them, and ``init``."""
    folder = kernel.modules / kernel.release
    order = load_order((folder / "modules.dep").read_text(), MODULES)
    files = {
        "bin/busybox": Path("/bin/busybox").read_bytes(),
        "init": init.encode(),
        "modules/order": "".join(f"{path.rpartition('/')[2]}\n" for path in order).encode(),
        **{f"modules/{path.rpartition('/')[2]}": (folder / path).read_bytes() for path in order},
    }
    return gzip.compress(archive(files), compresslevel=1)


def load_order(dependencies: str, wanted: tuple[str, ...]) -> list[str]:
    """Paths of the modules and of those they need (modules.dep), each after what it needs."""
    needs = {path: rest.split() for path, _, rest in (line.partition(":") for line in dependencies.splitlines())}
    by_name = {path.rpartition("/")[2].partition(".")[0].replace("-", "_"): path for path in needs}
    order: list[str] = []

    def add(path: str) -> None:
        for need in needs[path]:
            add(need)
        if path not in order:
            order.append(path)

    for name in wanted:
        if name in by_name:  # others are built in
            add(by_name[name])
    return order


def archive(files: dict[str, bytes]) -> bytes:
    """A cpio archive in the kernel's format (Documentation/driver-api/early-userspace/buffer-format)."""
    folders = sorted({"/".join(name.split("/")[:depth]) for name in files for depth in range(1, name.count("/") + 1)})
    entries = [(name, 0o040755, b"") for name in folders] + [(name, 0o100755, data) for name, data in files.items()]
    packed = bytearray()
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        packed += b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        packed += bytes(-len(packed) % 4)
        packed += data + bytes(-len(data) % 4)
    return bytes(packed)


@dataclass(frozen=True)
class Machine:
    """What is started, and with how much.

    Attributes:
        folder: Shared with the guest, at the same path; below the checkout.
        program: The guest's first process, a path.
        append: Further words for the kernel's command line.
    """

    folder: Path
    program: str
    append: str = ""
    processors: int = 1
    memory: str = "4G"

    def run(self, timeout: float, say: Callable[[str], None]) -> int:
        """Start the machine and wait for its end; ``say`` gets each line that it prints.

        Returns:
            What the guest wrote into the file ``status`` of the shared folder.
        """
        disk, files, status = (self.folder / name for name in ("disk", "initial", "status"))
        for path in (disk, files, status):
            path.unlink(missing_ok=True)
        kernel = find_kernel()
        init = INIT.format(
            checkout=shlex.quote(str(debian.WORK.parent)),
            modules=shlex.quote(str(kernel.modules)),
            share=shlex.quote(str(self.folder)),
            program=self.program,
        )
        files.write_bytes(initial_files(kernel, init))
        with open(disk, "wb") as file:
            file.truncate(DISK_BYTES)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-E", "nodiscard", str(disk)], check=True)
        try:
            if not self._run(self.command(kernel), timeout, say):
                say(f"the machine ran for {timeout:.0f} s and was stopped")
        finally:
            disk.unlink()
            files.unlink()
        if not status.exists():
            say(f"the guest ended early; the end of {self.folder}/console:")
            say((self.folder / "console").read_text(errors="replace")[-3000:])
            return NO_STATUS
        return int(status.read_text())

    @staticmethod
    def _run(command: list[str], timeout: float, say: Callable[[str], None]) -> bool:
        """Whether it ended by itself."""
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        over = threading.Event()

        def stop() -> None:
            over.set()
            process.kill()

        timer = threading.Timer(timeout, stop)
        timer.start()
        with process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    say(line.decode(errors="replace").rstrip("\r\n"))
            finally:
                timer.cancel()
                process.kill()  # has no effect on one that has ended
        return not over.is_set()

    def command(self, kernel: Kernel) -> list[str]:
        """QEMU's command line."""
        words = f"console=ttyS1 panic=-1 apparmor=1 security=apparmor psi=1 net.ifnames=0 {self.append}"
        # What QEMU offers of a real processor's registers is not always what KVM takes back.
        processor = ["-accel", "kvm", "-cpu", "host,-arch-capabilities"]
        if not os.environ.get("VM_KVM"):
            processor = EMULATED
            words += " mitigations=off tsc=reliable"
        return [
            *("qemu-system-x86_64", "-nodefaults", "-no-reboot", "-display", "none", "-no-user-config"),
            *processor,
            *("-smp", str(self.processors), "-m", self.memory, "-device", "virtio-rng-pci"),
            *("-serial", "stdio", "-serial", f"file:{self.folder}/console"),
            *("-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"),
            *("-device", "virtio-9p-pci,fsdev=root,mount_tag=root"),
            *("-fsdev", f"local,id=share,path={self.folder},security_model=none"),
            *("-device", "virtio-9p-pci,fsdev=share,mount_tag=share"),
            *("-drive", f"file={self.folder}/disk,format=raw,if=virtio,cache=unsafe"),
            *("-kernel", str(kernel.image), "-initrd", f"{self.folder}/initial", "-append", words),
        ]
