"""`sampan daemon` and `sampan config`."""

import click

from sampan.cli.main import Globals


@click.command()
@click.option("--address", default="", metavar="SOCKET", help="Where to serve CRI. [<state>/sampan.sock]")
@click.option("--log-level", type=click.Choice(["", "debug", "info", "warning", "error"]), default="")
@click.pass_obj
def daemon(options: Globals, address: str, log_level: str) -> int:
    """Serve Kubernetes' Container Runtime Interface."""
    from sampan.daemon.main import run

    given = {"socket": address, "log_level": log_level}
    return run(options.config, options.places() | {key: value for key, value in given.items() if value})


@click.group()
def config() -> None:
    """Show and check the daemon's configuration."""


@config.command("default")
def config_default() -> None:
    """Print every setting with its default."""
    from sampan.daemon.config import default_text

    click.echo(default_text(), nl=False)


@config.command("dump")
@click.pass_obj
def config_dump(options: Globals) -> None:
    """Print the settings in force."""
    from sampan.daemon.config import dump, load

    click.echo(dump(load(options.config, options.places())), nl=False)


@config.command("check")
@click.pass_obj
def config_check(options: Globals) -> None:
    """Say whether the file is right."""
    from sampan.daemon.config import load

    load(options.config, serving=True)
    click.echo("ok")
