"""What the virtual machine's kernel is given, checked by programs that read it."""

import subprocess
from pathlib import Path

import pytest
import virtual_machine as vm

BUSYBOX = Path("/bin/busybox")
DEPENDENCIES = """\
kernel/fs/ext4/ext4.ko: kernel/lib/crc16.ko kernel/fs/jbd2/jbd2.ko
kernel/fs/jbd2/jbd2.ko: kernel/lib/crc16.ko
kernel/lib/crc16.ko:
kernel/net/9p/9pnet-virtio.ko:
"""


def test_modules_are_loaded_after_what_they_need() -> None:
    order = vm.load_order(DEPENDENCIES, ("ext4", "built_in", "9pnet_virtio"))
    names = [path.rpartition("/")[2] for path in order]
    assert names == ["crc16.ko", "jbd2.ko", "ext4.ko", "9pnet-virtio.ko"]


@pytest.mark.skipif(not BUSYBOX.exists(), reason="needs busybox")
def test_the_archive_is_cpios(tmp_path: Path) -> None:
    files = {"init": b"#!/bin/sh\n", "a/b/c": b"x" * 4097, "a/empty": b""}
    subprocess.run([BUSYBOX, "cpio", "-i"], input=vm.archive(files), cwd=tmp_path, check=True, capture_output=True)
    for name, data in files.items():
        assert (tmp_path / name).read_bytes() == data
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o755
