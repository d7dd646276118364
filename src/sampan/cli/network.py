"""`sampan network`: networks that containers can join."""

import os

import click

from sampan import network as net
from sampan.cli import render
from sampan.cli.main import Globals
from sampan.cli.session import open_engine


@click.group()
def network() -> None:
    """List, make and remove networks."""


@network.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Only names.")
@click.pass_obj
def network_list(options: Globals, quiet: bool) -> None:
    """List networks; the first is the default one."""
    with open_engine(options) as engine:
        found = engine.networks.all()
        if quiet:
            for one in found:
                click.echo(one.name)
            return
        rows = []
        for one in found:
            subnets = " ".join(map(str, net.subnets(one)))
            count = len(net.members(engine.networks, one.name))
            kinds = "+".join(str(plugin["type"]) for plugin in one.plugins)
            rows.append((one.name, kinds, subnets or "-", str(count), one.path or "(built in)"))
        render.table(("NAME", "PLUGINS", "SUBNETS", "CONTAINERS", "FILE"), rows)
        for what, mend in net.obstacles():
            click.echo(f"sampan: {what}; let the bridge through: {mend}", err=True)
        for fault in engine.networks.faults():
            click.echo(f"sampan: {fault}", err=True)


@network.command("inspect")
@click.argument("name")
@click.pass_obj
def network_inspect(options: Globals, name: str) -> None:
    """Show a network's conflist, its external plugins with the versions they speak, and who is on it."""
    with open_engine(options) as engine:
        found = engine.networks.get(name)
        programs = net.programs(engine.networks, found)
        document = {"file": found.path, "conflist": found.document, **({"programs": programs} if programs else {})}
        render.document({**document, "containers": net.members(engine.networks, found.name)})


@network.command("create")
@click.option("--subnet", default="", help="Addresses; a free private subnet when left out.")
@click.option("--gateway", default="", help="The bridge's address; the subnet's first when left out.")
@click.option("--ipv6", is_flag=True, help="Also an IPv6 subnet.")
@click.option("--internal", is_flag=True, help="No way out of it.")
@click.option("--mtu", type=int, default=0)
@click.argument("name")
@click.pass_obj
def network_create(
    options: Globals, subnet: str, gateway: str, ipv6: bool, internal: bool, mtu: int, name: str
) -> None:
    """Make a bridge network."""
    with open_engine(options) as engine:
        os.makedirs(engine.config.cni_conf_dir, 0o755, exist_ok=True)
        click.echo(
            net.create(engine.networks, name, subnet=subnet, gateway=gateway, ipv6=ipv6, internal=internal, mtu=mtu)
        )


@network.command("rm")
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def network_remove(options: Globals, names: tuple[str, ...]) -> None:
    """Remove networks that nobody is on."""
    with open_engine(options) as engine:
        for name in names:
            net.remove(engine.networks, name)
            click.echo(name)


@network.command("reconcile")
@click.pass_obj
def network_reconcile(options: Globals) -> None:
    """Free addresses and rules that no pod owns, and put back rules that are missing."""
    with open_engine(options) as engine:
        done = net.reconcile(engine.networks, lambda: set(os.listdir(f"{engine.config.state}/ns")))
        render.document(done)
