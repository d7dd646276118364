"""Containers by what a person calls them: an id, the beginning of one, or a name."""

from sampan.engine.engine import Engine
from sampan.engine.model import ContainerRecord
from sampan.errors import InvalidInput, NotFound


def container(engine: Engine, text: str) -> ContainerRecord:
    """The one container that ``text`` means.

    Raises:
        NotFound: None.
        InvalidInput: Several.
    """
    named = [record for record in engine.containers.list() if record.spec.metadata.name == text]
    if len(named) == 1:
        return named[0]
    if len(named) > 1:
        raise InvalidInput(f'"{text}" is the name of {len(named)} containers', field="CONTAINER", hint="give the id")
    try:
        return engine.containers.get(text)
    except NotFound:
        raise NotFound(
            f'container "{text}" does not exist', hint=f"in namespace {engine.namespace}; see `sampan ps -a`"
        ) from None
