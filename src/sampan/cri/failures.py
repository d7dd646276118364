"""The one place at which an exception becomes a gRPC status."""

import logging
from typing import NoReturn

import grpc

from sampan.errors import SampanError

_LOG = logging.getLogger("sampan.cri")

#: A status goes out as an HTTP/2 header, of which gRPC clients take 8 KiB in all; other than ASCII grows threefold.
_MESSAGE_LIMIT = 2000


def one_line(text: str) -> str:
    """A message of one bounded line."""
    flat = " ".join(text.split())
    return flat if len(flat) <= _MESSAGE_LIMIT else f"{flat[: _MESSAGE_LIMIT - 3]}..."


def abort(context: grpc.ServicerContext, method: str, error: Exception) -> NoReturn:
    """End a call with the status that stands for ``error``.

    A domain error brings its code and its message. Anything else is a bug of ours or the machine's failure: the log
    gets the traceback, the client one line.
    """
    if isinstance(error, SampanError):
        code = grpc.StatusCode[error.grpc_code]
        _LOG.info("%s: %s: %s", method, error.grpc_code, one_line(str(error)))
        context.abort(code, one_line(str(error)))
    _LOG.error("%s: unexpected %s", method, type(error).__name__, exc_info=error)
    context.abort(grpc.StatusCode.INTERNAL, one_line(f"internal error: {type(error).__name__}: {error}"))
    raise AssertionError("abort returned")
