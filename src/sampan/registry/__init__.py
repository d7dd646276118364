"""The distribution plank: pull, push and copy of images, and what they stand on.

Importing this package imports nothing else; each name is loaded when it is first used, since HTTP and TLS cost more to
import than most commands cost to run.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sampan.registry.copying import copy, push
    from sampan.registry.credentials import Credentials
    from sampan.registry.opening import open_image, write_image
    from sampan.registry.progress import Event
    from sampan.registry.pulling import Pulled, pull
    from sampan.registry.resolver import Resolver
    from sampan.registry.transport import Limits

__all__ = ["Credentials", "Event", "Limits", "Pulled", "Resolver", "copy", "open_image", "pull", "push", "write_image"]

_HOMES = {
    "Credentials": "credentials",
    "Event": "progress",
    "Limits": "transport",
    "Pulled": "pulling",
    "Resolver": "resolver",
    "copy": "copying",
    "open_image": "opening",
    "pull": "pulling",
    "push": "copying",
    "write_image": "opening",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
