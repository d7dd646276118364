"""The two programs made of bytes: the trampoline, and pause. Run as ordinary processes; no root needed."""

import fcntl
import os
import select
import signal
import struct
import subprocess
import time

import pytest

from sampan.linux.process import F_ADD_SEALS
from sampan.runtime import pause, stage2

pytestmark = pytest.mark.skipif(not stage2.available(), reason="the programs are of x86-64")


def _run(argv: list[str], environment: list[str], program: int | None = None) -> tuple[int, int]:
    """Fork and execute the trampoline; (pid, descriptor of its output)."""
    reader, writer = os.pipe()
    fd = stage2.program() if program is None else program
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(writer, 1)
            stage2.execute(fd, argv, environment)
        finally:
            os._exit(99)
    os.close(writer)
    return pid, reader


def _end(pid: int, reader: int) -> tuple[int, bytes]:
    output = b""
    while chunk := os.read(reader, 4096):
        output += chunk
    os.close(reader)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), output


def test_the_file_is_small_sealed_and_sound() -> None:
    image = stage2.build()
    assert len(image) < 400
    assert image[:4] == b"\x7fELF"
    entry = struct.unpack_from("<Q", image, 24)[0]
    assert entry == 0x400000 + 64 + 2 * 56
    size, memory = struct.unpack_from("<QQ", image, 64 + 32)
    assert size == memory == len(image)
    fd = stage2.program()
    # Sealed is what whoever may mount nothing gets.
    assert os.fstatvfs(fd).f_flag & os.ST_RDONLY or fcntl.fcntl(fd, F_ADD_SEALS + 1) & 0xF == 0xF
    assert fd == stage2.program()
    assert os.get_inheritable(fd) is False


def test_arguments_and_environment_are_passed_as_they_are() -> None:
    argv = stage2.arguments("/bin/sh", ["odd name", "-c", 'echo "$0|$1|$A"; cat /proc/self/environ', "zero", "one"])
    status, output = _end(*_run(argv, ["A=b", "PATH=/bin", "TWICE=1", "TWICE=2", "none"]))
    assert status == 0
    first, _, rest = output.partition(b"\n")
    assert first == b"zero|one|b"
    assert b"PATH=/bin\0" in rest


def test_bytes_that_are_not_utf8() -> None:
    argv = stage2.arguments("/bin/echo", ["echo", os.fsdecode(b"\xff\xfe")])
    assert _end(*_run(argv, [])) == (0, b"\xff\xfe\n")


@pytest.mark.parametrize(("path", "status"), [("/no/such/file", 127), ("/etc/passwd", 126), ("/", 126)])
def test_failures_have_the_shells_codes(path: str, status: int) -> None:
    assert _end(*_run(stage2.arguments(path, ["x"]), [])) == (status, b"")


def test_it_waits_on_the_fifo_and_reports() -> None:
    fifo, start = os.pipe()
    said, report = os.pipe()
    os.set_inheritable(fifo, True)
    os.set_inheritable(report, True)
    pid, reader = _run(stage2.arguments("/bin/cat", ["cat", "/proc/self/cmdline"], fifo=fifo, report=report), [])
    os.close(report)
    poll = select.poll()
    poll.register(said, select.POLLIN)
    deadline = time.monotonic() + 5
    while "sampan-init" not in os.readlink(f"/proc/{pid}/exe"):
        assert time.monotonic() < deadline
    assert not poll.poll(50)
    os.write(start, b"\n")
    assert poll.poll(5000)
    assert os.read(said, 10) == b""  # close-on-exec: it has become the other program
    assert _end(pid, reader) == (0, b"cat\0/proc/self/cmdline\0")
    for fd in (fifo, start, said):
        os.close(fd)


def test_it_reports_the_errno() -> None:
    said, report = os.pipe()
    os.set_inheritable(report, True)
    pid, reader = _run(stage2.arguments("/no/such/file", ["x"], report=report), [])
    os.close(report)
    assert _end(pid, reader)[0] == 127
    assert int.from_bytes(os.read(said, 10), "little") == 2
    os.close(said)


def test_a_signal_does_not_end_the_wait() -> None:
    fifo, start = os.pipe()
    os.set_inheritable(fifo, True)
    pid, reader = _run(stage2.arguments("/bin/true", ["true"], fifo=fifo), [])
    deadline = time.monotonic() + 5
    while not os.readlink(f"/proc/{pid}/exe").startswith("/memfd") and time.monotonic() < deadline:
        pass
    for each in (signal.SIGSTOP, signal.SIGCONT):
        os.kill(pid, each)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.write(start, b"\n")
    assert _end(pid, reader) == (0, b"")
    os.close(fifo)
    os.close(start)


def test_descriptors_above_the_printable() -> None:
    said, report = os.pipe()
    high = fcntl.fcntl(report, fcntl.F_DUPFD, 150)
    os.set_inheritable(high, True)
    pid, reader = _run(stage2.arguments("/no/such/file", ["x"], report=high), [])
    os.close(high)
    os.close(report)
    assert _end(pid, reader)[0] == 127
    assert len(os.read(said, 10)) == 4
    os.close(said)


def test_it_loads_a_filter_right_before_it_executes() -> None:
    # ld [0]; jeq mkdir, 0, 1; ret ERRNO(77); ret ALLOW
    bpf = struct.pack("<" + "HBBI" * 4, 0x20, 0, 0, 0, 0x15, 0, 1, 83, 6, 0, 0, 0x50000 | 77, 6, 0, 0, 0x7FFF0000)
    script = "grep Seccomp: /proc/self/status; python3 -c 'import os; os.mkdir(\"/tmp/never\")' 2>&1"
    program = stage2.program(bpf, 0)
    out, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            from sampan.linux.process import PR_SET_NO_NEW_PRIVS, prctl

            os.dup2(writer, 1)
            prctl(PR_SET_NO_NEW_PRIVS, 1)
            stage2.execute(program, stage2.arguments("/bin/sh", ["sh", "-c", script]), ["PATH=/usr/bin:/bin"])
        finally:
            os._exit(99)
    os.close(writer)
    _, output = _end(pid, out)
    assert b"Seccomp:\t2\n" in output
    assert b"[Errno 77]" in output


def test_a_filter_that_the_kernel_refuses_is_reported() -> None:
    status, _ = _end(*_run(stage2.arguments("/bin/true", ["true"]), [], stage2.program(bytes(8), 0)))
    assert status == 126


def test_pause_reaps_and_ends_on_a_signal() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        pid = os.fork()
        if pid == 0:
            try:
                stage2.execute(pause.program(), ["/pause"], [])
            finally:
                os._exit(99)
        deadline = time.monotonic() + 5
        ignored = 0
        while not ignored >> (signal.SIGCHLD - 1) & 1 and time.monotonic() < deadline:
            with open(f"/proc/{pid}/status") as file:
                fields = dict(line.split(":", 1) for line in file.read().splitlines())
            ignored = int(fields["SigIgn"], 16)
        assert ignored >> (signal.SIGCHLD - 1) & 1
        with open(f"/proc/{pid}/cmdline") as file:
            assert file.read() == "/pause\0"
        os.kill(pid, number)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, -number)


def test_the_disassembly_is_what_the_comments_say() -> None:
    objdump = "/usr/bin/objdump"
    if not os.path.exists(objdump):
        pytest.skip("no objdump")
    path = f"/proc/{os.getpid()}/fd/{stage2.program()}"
    code = subprocess.run(
        [objdump, "-D", "-b", "binary", "-m", "i386:x86-64", "-M", "intel", "--start-address=176", path],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "(bad)" not in code
    assert code.count("syscall") == 6
