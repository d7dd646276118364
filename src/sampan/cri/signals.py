"""The interface's signal numbers, which are its own, and the names that the engine knows."""

from sampan.cri import api_pb2 as pb
from sampan.errors import InvalidInput


def _engine_name(name: str) -> str:
    """``SIGRTMINPLUS3`` -> ``SIGRTMIN+3``; the others keep their names."""
    return name.replace("MAXMINUS", "MAX-").replace("MINPLUS", "MIN+")


_NAMES = {int(number): _engine_name(name) for name, number in pb.Signal.items() if number}
_NUMBERS = {name: pb.Signal.ValueType(number) for number, name in _NAMES.items()}


def to_engine(number: int, field: str) -> str:
    """Name of a signal; empty for the runtime's default.

    Raises:
        InvalidInput: The number is none of the interface's.
    """
    if not number:
        return ""
    if number not in _NAMES:
        raise InvalidInput(f"{number} is no signal of the interface", field=field)
    return _NAMES[number]


def to_message(name: str) -> pb.Signal.ValueType:
    """Number of a signal that an image or a request named: ``SIGTERM``, ``TERM`` or ``15``; 0 for none known."""
    if name.isdecimal():
        import signal

        try:
            name = signal.Signals(int(name)).name
        except ValueError:
            return pb.RUNTIME_DEFAULT
    name = name.upper()
    if name and not name.startswith("SIG"):
        name = f"SIG{name}"
    return _NUMBERS.get(name, pb.RUNTIME_DEFAULT)
