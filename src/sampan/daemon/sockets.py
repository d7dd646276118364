"""Unix sockets of the daemon: stale ones, and their group."""

import errno
import os
import socket

from sampan.errors import InvalidInput, StageFailed


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
