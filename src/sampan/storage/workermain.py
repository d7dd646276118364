"""The process that forks workers, and what workers do first; see worker.py. On the import diet.

Its memory is its workers' too, as long as neither writes to it: so the collector is told to leave alone what was
there before they were forked.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import gc
import marshal
import os
import sys

from sampan.errors import SampanError, StageFailed
from sampan.linux.process import PR_SET_PDEATHSIG, prctl
from sampan.wire import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_REQUEST_SIZE = 1 << 16
_INT = 4
_SPACE = _socket.CMSG_SPACE(_INT * 16)


def run() -> NoReturn:
    """Fork a worker for each request that comes through the descriptor on the command line, until there are no more."""
    requests = _socket.socket(fileno=int(sys.argv[1]))
    for module in filter(None, sys.argv[2].split(",")):
        __import__(module)
    gc.freeze()
    while True:
        data, control, _, _ = requests.recvmsg(_REQUEST_SIZE, _SPACE, _socket.MSG_CMSG_CLOEXEC)
        if not data:
            _reap()  # what they took is counted as this process's, and so its maker's
            os._exit(0)
        packed = b"".join(piece for _, _, piece in control)
        fds = [int.from_bytes(packed[at : at + _INT], sys.byteorder) for at in range(0, len(packed), _INT)]
        _fork(requests, data, fds)
        for fd in fds:
            os.close(fd)
        _reap()


def _fork(requests: _socket.socket, data: bytes, fds: list[int]) -> None:
    """Fork the worker that a request asks for; the first descriptor is where its owner hears of it."""
    nursery = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        os.write(fds[0], b"-" + _failure(StageFailed("fork a worker", error)))
        return
    if pid == 0:
        try:
            requests.close()
            prctl(PR_SET_PDEATHSIG, _signal.SIGKILL)
            if os.getppid() == nursery:
                _say_hello(fds[0])
                _work(data, fds)
        finally:
            # Without waiting for the thread that may still be inflating.
            os._exit(0)


def _say_hello(fd: int) -> None:
    """Give the owner a descriptor of this process, by which it can be ended and waited for."""
    pidfd = os.pidfd_open(os.getpid())
    owner = _socket.socket(fileno=os.dup(fd))
    owner.sendmsg([b"+"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, pidfd.to_bytes(_INT, sys.byteorder))])
    owner.close()
    os.close(pidfd)


def _reap() -> None:
    """Wait for the workers that have ended; they are no more than an image's layers."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _work(request: bytes, fds: list[int]) -> None:
    """Call the function that a request names, and write what came of it to the first descriptor."""
    try:
        function, argument = marshal.loads(request)
        module, _, name = function.partition(":")
        __import__(module)
        outcome = jsontext.dumps(["done", getattr(sys.modules[module], name)(argument, fds[1:])]).encode()
    except SampanError as error:
        outcome = _failure(error)
    except BaseException as error:  # noqa: BLE001 - it is to be told, not lost
        outcome = _failure(SampanError(f"worker: {type(error).__name__}: {error}"))
    data = memoryview(outcome)
    while data:
        data = data[os.write(fds[0], data) :]


def _failure(error: SampanError) -> bytes:
    return jsontext.dumps(["failed", type(error).__name__, error.message, error.hint]).encode()
