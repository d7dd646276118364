"""How a process is made, as far as its configuration does not say."""

from __future__ import annotations


class Options:
    """How a container is made, beside what its configuration says.

    Attributes:
        systemd_cgroup: cgroupsPath is "slice:prefix:name", and systemd makes the cgroup.
        console_socket: Unix socket that gets the terminal's master.
        preserve_fds: So many descriptors of the caller, from 3 on, become the program's.
        notify: Make the folder for a socket to which the program says that it is ready.
        no_pivot: Move the root instead of pivoting.
        new_keyring: Give the container a session keyring of its own.
        seccomp_cache: Directory of compiled filters, or empty.
        cgroups: Of an exec'ed process: controller -> cgroup below the container's; an empty name for the rest.
        ignore_paused: An exec'ed process may wait in a frozen cgroup.
        expendable: The calling process lives for this work only and may be lost with it: see :mod:`.borrow`.
        watched: Somebody may trace an exec'ed process, whom the container's configuration does not tell of.
    """

    __slots__ = (
        "cgroups",
        "console_socket",
        "expendable",
        "ignore_paused",
        "new_keyring",
        "no_pivot",
        "notify",
        "preserve_fds",
        "seccomp_cache",
        "systemd_cgroup",
        "watched",
    )

    def __init__(
        self,
        *,
        systemd_cgroup: bool = False,
        console_socket: str = "",
        preserve_fds: int = 0,
        no_pivot: bool = False,
        new_keyring: bool = True,
        seccomp_cache: str = "",
        cgroups: dict[str, str] | None = None,
        ignore_paused: bool = False,
        expendable: bool = False,
        watched: bool = False,
    ) -> None:
        self.watched = watched
        self.notify = False
        self.expendable = expendable
        self.cgroups = cgroups or {}
        self.ignore_paused = ignore_paused
        self.systemd_cgroup = systemd_cgroup
        self.console_socket = console_socket
        self.preserve_fds = preserve_fds
        self.no_pivot = no_pivot
        self.new_keyring = new_keyring
        self.seccomp_cache = seccomp_cache
