"""External CNI plugins: a process for each call. CNI SPEC.md, section 3.

A plugin that hangs, prints garbage or dies is reported as that. What it prints is bounded; its standard error is kept:
in the error, or in the log when it did what it was asked. Its whole process group ends with the deadline.

What runs processes is imported when one is run: ``sampan-cni`` itself seldom does, and is started for each call.
"""

import os
import time
from typing import TYPE_CHECKING, Any

import msgspec

from sampan.errors import Corrupt, NotFound, SampanError, StageFailed, TimedOut, Unavailable
from sampan.linux.process import pidfd_open
from sampan.spec import cni

if TYPE_CHECKING:
    import subprocess

#: Seconds that one call may take.
DEADLINE = 60.0
_MAX_OUTPUT = 1 << 20
_MAX_SHOWN = 2000


class PluginFailed(SampanError):
    """A plugin said that it failed, with its own error object.

    Args:
        plugin: Its type.
        command: What was asked: ADD, DEL, ...
        error: What it printed.
        stderr: What it wrote to standard error.
    """

    def __init__(self, plugin: str, command: str, error: cni.ErrorObject, stderr: str = "") -> None:
        text = f"CNI plugin {plugin} failed {command}: {error.msg}"
        if error.details:
            text += f"; {error.details}"
        text += f" [code {error.code}]"
        if stderr:
            text += f"; stderr: {stderr}"
        super().__init__(text)
        self.code = error.code
        self.retriable = error.code == cni.CODE_TRY_AGAIN


def find(kind: str, bin_dirs: tuple[str, ...]) -> str:
    """The binary of a plugin type.

    Raises:
        NotFound: No directory has it.
    """
    for directory in bin_dirs:
        path = os.path.join(directory, kind)
        if os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    where = ":".join(bin_dirs) or "no directory"
    raise NotFound(f"CNI plugin {kind} is in none of {where}", hint="install it, or mend the conflist's type")


def run(
    binary: str,
    command: str,
    conf: dict[str, Any],
    *,
    container_id: str = "",
    netns: str = "",
    ifname: str = "",
    args: dict[str, str] | None = None,
    bin_dirs: tuple[str, ...] = (),
    deadline: float = DEADLINE,
    ending: int = -1,
) -> dict[str, Any]:
    """Run one call of a plugin.

    Args:
        binary: Its path.
        command: ADD, DEL, CHECK, STATUS, GC or VERSION.
        conf: Its configuration.
        container_id: CNI_CONTAINERID.
        netns: CNI_NETNS.
        ifname: CNI_IFNAME.
        args: CNI_ARGS.
        bin_dirs: CNI_PATH.
        deadline: Seconds after which it is killed.
        ending: A descriptor that can be read once whoever asks is ending, which ends the plugin too.

    Returns:
        What it printed; empty when it printed nothing.

    Raises:
        PluginFailed: It printed an error object.
        TimedOut: It did not end.
        Unavailable: Whoever asked is ending.
        Corrupt: What it printed is no JSON object, or nothing and it failed.
    """
    plugin = os.path.basename(binary)
    environment = {
        **os.environ,
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container_id,
        "CNI_NETNS": netns,
        "CNI_IFNAME": ifname,
        "CNI_ARGS": ";".join(f"{key}={value}" for key, value in (args or {}).items()),
        "CNI_PATH": ":".join(bin_dirs or (os.path.dirname(binary),)),
    }
    status, output, said = _communicate(binary, command, environment, msgspec.json.encode(conf), deadline, ending)
    stderr = _shown(said)
    try:
        document = msgspec.json.decode(output) if output.strip() else {}
    except (msgspec.DecodeError, RecursionError):
        document = None
    if status == 0 and isinstance(document, dict):
        if stderr:
            _log(f"CNI plugin {plugin} said at {command} of {container_id or conf.get('name')}: {stderr}")
        return document
    if isinstance(document, dict) and "code" in document:
        try:
            raise PluginFailed(plugin, command, msgspec.convert(document, cni.ErrorObject), stderr)
        except msgspec.ValidationError:
            pass
    shown = output[:200].decode("utf-8", "replace").strip()
    how = f"ended with status {status}" if status >= 0 else f"was killed by {_signal_name(-status)}"
    raise Corrupt(
        f"CNI plugin {plugin} {how} at {command} and printed {shown!r}, which is no CNI document"
        + (f"; stderr: {stderr}" if stderr else "")
    )


def _shown(stderr: bytes | bytearray) -> str:
    """The end of what a plugin said, which is where programs say why they end."""
    return stderr.decode("utf-8", "replace").strip()[-_MAX_SHOWN:]


def _log(text: str) -> None:
    # Imported when there is something to say: a command's start does not pay for it.
    import logging

    logging.getLogger("sampan.network").info(text)


def _signal_name(number: int) -> str:
    import signal

    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _communicate(
    binary: str, command: str, environment: dict[str, str], document: bytes, deadline: float, ending: int
) -> tuple[int, bytes, bytes]:
    import signal
    import subprocess

    try:
        # A session of its own, so that what it leaves running ends with it.
        process = subprocess.Popen(
            [binary],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise StageFailed(f"run CNI plugin {os.path.basename(binary)}", error, path=binary) from error
    output, said = bytearray(), bytearray()
    try:
        _pump(process, document, time.monotonic() + deadline, ending, output, said)
        return process.wait(), bytes(output), bytes(said)
    except (TimedOut, Unavailable, OverflowError) as error:
        plugin, shown = os.path.basename(binary), _shown(said)
        stderr = f"; stderr: {shown}" if shown else ""
        if isinstance(error, Unavailable):
            raise Unavailable(f"CNI plugin {plugin} was killed at its {command}, since we are ending{stderr}") from None
        if isinstance(error, TimedOut):
            how = f"did not end its {command} within {deadline:g} s and was killed"
            raise TimedOut(f"CNI plugin {plugin} {how}{stderr}") from None
        raise Corrupt(f"CNI plugin {plugin} printed more than {_MAX_OUTPUT} bytes at {command}{stderr}") from None
    finally:
        if process.returncode is None:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def _pump(
    process: "subprocess.Popen[bytes]", document: bytes, until: float, ending: int, output: bytearray, said: bytearray
) -> None:
    """Write the document, read both outputs, until the process has ended: not until every heir of its pipes has."""
    import selectors

    assert process.stdin is not None and process.stdout is not None and process.stderr is not None  # noqa: PT018
    pidfd = pidfd_open(process.pid)
    left = memoryview(document)
    outputs = {process.stdout.fileno(): output, process.stderr.fileno(): said}
    try:
        with selectors.DefaultSelector() as selector:
            for fd in (process.stdin.fileno(), *outputs):
                os.set_blocking(fd, False)
            selector.register(process.stdin.fileno(), selectors.EVENT_WRITE)
            for fd in (*outputs, pidfd, *([ending] if ending >= 0 else [])):
                selector.register(fd, selectors.EVENT_READ)
            ended = False
            while not ended:
                remaining = until - time.monotonic()
                if remaining <= 0:
                    raise TimedOut("deadline")
                for key, _events in selector.select(remaining):
                    if key.fd == pidfd:
                        ended = True
                    elif key.fd == ending:
                        raise Unavailable("ending")
                    elif key.fd in outputs:
                        if not _read(key.fd, outputs[key.fd]):
                            selector.unregister(key.fd)
                    else:
                        left = _write(key.fd, left)
                        if not left:
                            selector.unregister(key.fd)
                            process.stdin.close()
            _drain(outputs)
    finally:
        os.close(pidfd)


def _write(fd: int, left: memoryview) -> memoryview:
    try:
        return left[os.write(fd, left) :]
    except BlockingIOError:
        return left
    except BrokenPipeError:
        return left[:0]


def _drain(outputs: dict[int, bytearray]) -> None:
    for fd, into in outputs.items():
        while _read(fd, into):
            pass


def _read(fd: int, into: bytearray) -> bool:
    """Read what there is; False at the end or when nothing is there."""
    try:
        data = os.read(fd, 65536)
    except BlockingIOError:
        return False
    into += data
    if len(into) > _MAX_OUTPUT:
        raise OverflowError
    return bool(data)
