"""Imports gRPC and protobuf without those halves of them that this server never calls: 4 MB of an idle daemon.

gRPC imports asyncio for ``grpc.aio``, and protobuf its implementation in Python, in place of which the one in C runs.
While they are imported these names lead to empty modules; afterwards to what they always led to, so that whoever
imports asyncio later gets it.
"""

import sys
from importlib import import_module
from types import ModuleType

_UNUSED = ["asyncio", "grpc.aio"]
#: Unused where the implementation is ``upb``.
_IN_PYTHON = "google.protobuf.internal.python_message"


def load() -> None:
    """Import them; what is imported already stays as it is."""
    from google.protobuf.internal import api_implementation

    unused = [*_UNUSED, _IN_PYTHON] if api_implementation.Type() == "upb" else _UNUSED
    placeholders = {name: ModuleType(name) for name in unused if name not in sys.modules}
    sys.modules |= placeholders
    try:
        import_module("google.protobuf.internal.builder")
        import_module("grpc")
    finally:
        for name in placeholders:
            del sys.modules[name]
