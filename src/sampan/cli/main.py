"""The `sampan` command: global options, and groups of commands that are imported only when they are called."""

import importlib
import importlib.util
import os
import sys
from typing import Any, NamedTuple

import click

from sampan import __version__
from sampan.errors import SampanError, StageFailed

#: Command -> module and attribute that is its click command.
_COMMANDS = {
    "attach": "sampan.cli.containers:attach",
    "config": "sampan.cli.daemon:config",
    "content": "sampan.cli.content:content",
    "daemon": "sampan.cli.daemon:daemon",
    "doctor": "sampan.cli.doctor:doctor",
    "events": "sampan.cli.containers:events",
    "exec": "sampan.cli.containers:exec_command",
    "fsck": "sampan.cli.content:fsck",
    "gc": "sampan.cli.content:gc",
    "image": "sampan.cli.image:image",
    "images": "sampan.cli.images:images",
    "inspect": "sampan.cli.containers:inspect",
    "kill": "sampan.cli.containers:kill",
    "load": "sampan.cli.images:load",
    "login": "sampan.cli.registry:login",
    "logout": "sampan.cli.registry:logout",
    "logs": "sampan.cli.logs:logs",
    "network": "sampan.cli.network:network",
    "plugins": "sampan.cli.doctor:plugins",
    "pods": "sampan.cli.pods:pods",
    "ps": "sampan.cli.containers:ps",
    "pull": "sampan.cli.images:pull",
    "push": "sampan.cli.images:push",
    "registry": "sampan.cli.registry:registry",
    "rm": "sampan.cli.containers:rm",
    "rmi": "sampan.cli.images:rmi",
    "run": "sampan.cli.run:run",
    "save": "sampan.cli.images:save",
    "start": "sampan.cli.containers:start",
    "stats": "sampan.cli.containers:stats",
    "stop": "sampan.cli.containers:stop",
    "tag": "sampan.cli.images:tag",
    "wait": "sampan.cli.containers:wait",
}


class Globals(NamedTuple):
    """Options before the command's name."""

    config: str
    root: str
    state: str
    namespace: str
    debug: bool

    def places(self) -> dict[str, str]:
        """The folders that were given, as settings that count more than the configuration's."""
        return {key: value for key, value in (("root", self.root), ("state", self.state)) if value}


class _Lazy(click.Group):
    """A group whose commands are imported when called: `sampan ps` must not pay for the daemon's libraries."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return sorted(name for name, target in _COMMANDS.items() if _present(target))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        target = _COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, _, attribute = target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        return command if isinstance(command, click.Command) else None


def _present(target: str) -> bool:
    return importlib.util.find_spec(target.partition(":")[0]) is not None


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option("--config", default="", metavar="FILE", help="Configuration; /etc/sampan/config.toml when it exists.")
@click.option("--root", default="", metavar="DIR", help="Content, snapshots and metadata. [/var/lib/sampan]")
@click.option("--state", default="", metavar="DIR", help="Sockets, namespaces and bundles. [/run/sampan]")
@click.option("-n", "--namespace", default="", envvar="SAMPAN_NAMESPACE", help="Whose names. [default]")
@click.option("--debug", is_flag=True, help="Show a traceback with an error.")
@click.version_option(__version__, prog_name="sampan")
@click.pass_context
def cli(ctx: click.Context, config: str, root: str, state: str, namespace: str, debug: bool) -> None:
    """Run containers, keep images, serve Kubernetes' Container Runtime Interface."""
    ctx.obj = Globals(config, root, state, namespace or "default", debug)


def main() -> None:
    """Entry point: errors of the domain become one line and their exit code."""
    try:
        status: Any = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        status = 130
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except SampanError as error:
        status = report(error)
    except BrokenPipeError:
        # The reader of our output has gone; Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 141
    except OSError as error:
        # A system call that no layer gave a name: still one line.
        status = report(StageFailed("run the command", error))
    sys.exit(status if isinstance(status, int) else 0)


def report(error: SampanError) -> int:
    """Print an error as one line; its exit code."""
    if "--debug" in sys.argv:
        import traceback

        traceback.print_exception(error)
    click.echo(f"sampan: {error}", err=True)
    return error.exit_code


if __name__ == "__main__":
    main()
