"""`sampan daemon`: what is started, in which order, and how it ends.

    lock root and state ─ zygote ─ (grpc imported) ─ engine: recover, watch ─ CRI on its socket ─ ready

The order matters twice. The zygote is started before any thread and before grpc is imported, so that what monitors are
forked from is small and single-threaded. The socket appears last, so that a kubelet never sees a half-started daemon.

Pods outlive the daemon however it ends; SIGTERM and SIGINT end it gracefully, SIGHUP reloads what can be reloaded:
log level, registries, networks.
"""

import logging
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sampan.daemon import config as configuration
from sampan.daemon import logs, memory
from sampan.daemon.lock import Lock
from sampan.daemon.notify import Notifier
from sampan.errors import SampanError, StageFailed

if TYPE_CHECKING:
    from sampan.daemon.observation import Observation

_LOG = logging.getLogger("sampan.daemon")

#: Seconds for calls under way when the daemon is told to end; a kubelet repeats what is cut off.
_GRACE = 5.0
#: Seconds after the start, if nobody calls, until what only starting needed is given back.
_SETTLED = 0.25
#: Seconds without a call after which memory is given back, once.
_IDLE = 10.0


def run(config_path: str = "", overrides: Mapping[str, Any] | None = None) -> int:
    """Run the daemon until it is told to end.

    Args:
        config_path: Configuration file; empty: the default one if it exists.
        overrides: Values of dotted keys that win over it.

    Raises:
        SampanError: It could not be started.
    """
    config = configuration.load(config_path, overrides, serving=True)
    logs.start(config.log_level, config.log_format)
    notifier = Notifier.from_environment()
    daemon = Daemon(config)
    try:
        daemon.start()
        daemon.wait(notifier, lambda: configuration.load(config_path, overrides, serving=True))
        notifier.stopping()
    finally:
        daemon.close()
    return 0


class Daemon:
    """All that a daemon consists of.

    Args:
        config: Its configuration.
    """

    def __init__(self, config: configuration.Config) -> None:
        self.config = config
        self._closers: list[Any] = []
        self._observation: Observation | None = None
        # SIGTERM during start-up counts too: handlers come first.
        self._wake, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._signals: list[int] = []
        self._calls: Callable[[], int] = int
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: object) -> None:
        self._signals.append(number)
        try:
            os.write(self._waker, b"s")
        except BlockingIOError:
            pass

    def start(self) -> None:
        """Start everything; what was started is ended by :meth:`close`, also when this fails half-way."""
        began = time.monotonic()
        config = self.config
        os.umask(0o022)
        for directory, mode in ((config.root, 0o700), (config.state, 0o711)):
            self._closers.append(Lock(directory, mode).close)
        _set_oom_score(config.oom_score)

        from sampan.shim.zygote import Zygote

        zygote = Zygote.start()
        self._closers.append(zygote.close)
        # After the zygote, from which containers come: they keep what the daemon was started with.
        _raise_open_files()

        from sampan.cri import libraries

        libraries.load()

        from sampan.cri.server import Server
        from sampan.cri.services import services
        from sampan.daemon.streams import LazyStreams
        from sampan.engine.engine import Engine

        engine = self.engine = Engine(config.engine(), namespace=config.cri.namespace, zygote=zygote)
        self._closers += [engine.close, engine.tidy]
        engine.recover()
        engine.watch()
        if config.metrics_address:
            from sampan.daemon.observation import Observation

            self._observation = Observation(engine, config.metrics_address)
            self._closers.append(self._observation.close)
        streams = LazyStreams(engine, config.cri)
        self._closers.append(streams.close)
        server = Server(
            services(engine, streams, unset_seccomp=config.cri.unset_seccomp),
            self._observation.observe if self._observation else None,
        )
        self._listen(server)
        self._closers.append(lambda: server.stop(_GRACE))
        server.start()
        self._calls = lambda: server.calls
        _LOG.info("serving on %s after %.0f ms", config.socket_path, (time.monotonic() - began) * 1000)

    def _listen(self, server: Any) -> None:
        from sampan.daemon.sockets import group_id, remove_stale

        path = self.config.socket_path
        remove_stale(path)
        os.makedirs(os.path.dirname(path), 0o711, exist_ok=True)
        # Nobody else may connect between bind and chmod.
        before = os.umask(0o177)
        try:
            server.listen(path)
        except RuntimeError as error:
            raise StageFailed("listen", OSError(0, str(error)), path=path) from error
        finally:
            os.umask(before)
        if self.config.socket_group:
            os.chown(path, -1, group_id(self.config.socket_group))
        os.chmod(path, 0o660)
        self._closers.append(lambda: _unlink(path))

    def wait(self, notifier: Notifier, reload: Any) -> None:
        """Serve until SIGTERM or SIGINT."""
        notifier.ready("serving")
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        # What starting touched is given back once the server's threads have come to rest.
        seen, released, pause = self._calls(), -1, _SETTLED
        while True:
            if poll.poll(min(notifier.interval or pause, pause) * 1000):
                os.read(self._wake, 64)
            notifier.alive()
            calls = self._calls()
            if calls == seen != released:
                memory.release()
                released, pause = calls, _IDLE
            seen = calls
            while self._signals:
                number = self._signals.pop(0)
                if number != signal.SIGHUP:
                    _LOG.info("ending on %s", signal.Signals(number).name)
                    return
                notifier.reloading()
                self._reload(reload)
                notifier.ready("serving")

    def _reload(self, reload: Any) -> None:
        """Take what a changed configuration may change; a faulty one changes nothing."""
        try:
            fresh: configuration.Config = reload()
            logs.set_level(fresh.log_level)
            self.engine.reload(fresh.engine())
        except SampanError as error:
            _LOG.error("configuration not reloaded: %s", error)
            return
        _LOG.info("configuration reloaded")

    def close(self) -> None:
        """End everything, last started first; one that fails does not keep the others."""
        while self._closers:
            try:
                self._closers.pop()()
            except Exception:  # noqa: BLE001  the others must still be ended
                _LOG.exception("while ending")


def _raise_open_files() -> None:
    """As many open files as we may have: a usual soft limit is 1024, for programs that select(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _set_oom_score(score: int) -> None:
    if not score:
        return
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(str(score))
    except OSError as error:
        # Lowering it needs CAP_SYS_RESOURCE (proc(5)).
        _LOG.warning("oom_score %d is not set: %s", score, error.strerror)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
