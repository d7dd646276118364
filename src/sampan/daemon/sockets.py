"""Sockets of the daemon: where they may be, stale ones, and their group."""

import errno
import os
import socket

from sampan.errors import InvalidInput, StageFailed

#: sun_path of unix(7), without its closing NUL.
UNIX_PATH_LIMIT = 107


def remove_stale(path: str) -> None:
    """Remove a socket that nobody listens on, left by a daemon that was killed.

    Raises:
        StageFailed: Somebody listens on it, or it is no socket.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            # A plain file refuses too; only a socket is ours to remove.
            if os.path.exists(path) and not _is_socket(path):
                raise StageFailed("listen", FileExistsError(errno.EEXIST, "is not a socket"), path=path) from None
            os.unlink(path)
            return
        except OSError as error:
            raise StageFailed("listen", error, path=path) from error
    raise StageFailed("listen", OSError(errno.EADDRINUSE, "somebody listens on it"), path=path)


def endpoint(text: str, field: str = "") -> str | tuple[str, int]:
    """Where to listen: the path of a unix socket, or a host and a port.

    Args:
        text: ``unix:///PATH`` or ``HOST:PORT``.
        field: What the text is the value of, for the error.

    Raises:
        InvalidInput: It is neither.
    """
    if text.startswith("unix://"):
        path = text.removeprefix("unix://")
        if not path.startswith("/") or ".." in path.split("/"):
            raise InvalidInput(f'"{path}" is not an absolute path without ..', field=field)
        if len(path.encode()) > UNIX_PATH_LIMIT:
            raise InvalidInput(f"is longer than the {UNIX_PATH_LIMIT} bytes of a unix socket's path", field=field)
        return path
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise InvalidInput(f'"{text}" is neither HOST:PORT nor unix:///PATH', field=field)
    return host.removeprefix("[").removesuffix("]"), int(port)


def is_known(host: str) -> bool:
    """Whether ``host`` is an address, or the name of one; a name is looked up."""
    try:
        return bool(socket.getaddrinfo(host, None))
    except (OSError, UnicodeError):
        return False


def _is_socket(path: str) -> bool:
    import stat

    return stat.S_ISSOCK(os.lstat(path).st_mode)


def group_id(name: str) -> int:
    """Number of a group given by name or number.

    Raises:
        InvalidInput: There is no such group.
    """
    if name.isdecimal():
        return int(name)
    import grp

    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise InvalidInput(f'no group is called "{name}"', field="socket_group") from None
