"""What systemd is told: readiness, reloads, the end, signs of life (sd_notify(3), sd_watchdog_enabled(3))."""

import os
import time

from sampan.linux import sd_notify


class Notifier:
    """Speaks to the service manager, if there is one; a failure to is none of the daemon's.

    Args:
        address: ``NOTIFY_SOCKET``: a path, or an abstract name after ``@``; empty: nobody listens.
        interval: Seconds between signs of life, or 0 for none.
    """

    def __init__(self, address: str = "", interval: float = 0) -> None:
        self._address = address
        self.interval = interval

    @classmethod
    def from_environment(cls) -> "Notifier":
        """As the environment says; the variables are removed, so that no child of ours speaks in our name."""
        address = os.environ.pop("NOTIFY_SOCKET", "")
        microseconds = os.environ.pop("WATCHDOG_USEC", "")
        meant = os.environ.pop("WATCHDOG_PID", "") in ("", str(os.getpid()))
        # Half the time-out, as sd_watchdog_enabled(3) recommends.
        interval = int(microseconds) / 2_000_000 if meant and microseconds.isdecimal() else 0
        return cls(address, interval)

    def _send(self, text: str) -> None:
        if not self._address:
            return
        try:
            sd_notify.send(self._address, text)
        except OSError:
            return

    def ready(self, status: str) -> None:
        """Start-up, or a reload, is finished."""
        self._send(f"READY=1\nMAINPID={os.getpid()}\nSTATUS={status}")

    def reloading(self) -> None:
        """A reload begins."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The end begins."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Sign of life."""
        self._send("WATCHDOG=1")
