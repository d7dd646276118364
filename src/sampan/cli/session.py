"""Opening the engine that a command works on, from the configuration file and the global options."""

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from sampan.cli.main import Globals
from sampan.engine.engine import Engine


@contextmanager
def open_engine(options: Globals) -> Iterator[Engine]:
    """The engine of the options' namespace, closed at the end.

    Raises:
        InvalidInput: The configuration file is wrong.
    """
    from sampan.daemon.config import load

    config = load(options.config).engine()
    if options.root:
        config = msgspec.structs.replace(config, root=options.root, log_root=f"{options.root}/logs")
    if options.state:
        config = msgspec.structs.replace(config, state=options.state)
    engine = Engine(config, namespace=options.namespace)
    try:
        yield engine
    finally:
        engine.close()
