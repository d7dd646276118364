"""Capabilities, checked against what the kernel shows in /proc."""

import os

from sampan.linux import capabilities as caps


def _status(key: str) -> int:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(key):
                return int(line.split()[1], 16)
    raise AssertionError(key)


def test_the_callers_sets_are_the_kernels() -> None:
    assert caps.get() == (_status("CapEff"), _status("CapPrm"), _status("CapInh"))


def test_the_last_capability_is_the_kernels() -> None:
    with open("/proc/sys/kernel/cap_last_cap") as file:
        assert caps.last() == min(int(file.read()), len(caps.NAMES) - 1)


def test_names_are_bits() -> None:
    assert caps.mask(["CAP_CHOWN", "CAP_NET_ADMIN", "CAP_UNHEARD_OF"]) == 1 | 1 << 12
    assert caps.NUMBERS["CAP_CHECKPOINT_RESTORE"] == 40


def test_a_child_gives_everything_up() -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            caps.set_sets(0, 0, 0)
            os.write(writer, b"%x %x" % (_status("CapEff"), _status("CapPrm")))
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    assert os.read(reader, 100) == b"0 0"
    os.close(reader)
