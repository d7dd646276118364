"""`sampan doctor` and `sampan plugins`."""

import click
import msgspec

from sampan.cli import render
from sampan.cli.main import Globals

_MARKS = {"ok": ("ok", "green"), "warning": ("warn", "yellow"), "error": ("FAIL", "red")}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="A JSON document in place of lines.")
@click.option("-q", "--quiet", is_flag=True, help="Only what is wrong.")
@click.option("--online", is_flag=True, help="Connect to the registries that are configured, too.")
@click.pass_obj
def doctor(options: Globals, as_json: bool, quiet: bool, online: bool) -> int:
    """Say what on this machine keeps pods from running, and the mend. Changes nothing.

    The exit code is 0 when nothing is wrong, or only what some pods need; 1 when pods will not run.
    """
    from sampan.daemon import doctor as examination
    from sampan.daemon.findings import worst

    findings = list(examination.examine(options.config, options.places(), online=online))
    verdict = worst(findings)
    shown = [finding for finding in findings if not quiet or finding.verdict != "ok"]
    if as_json:
        render.document({"verdict": verdict, "findings": shown})
        return int(verdict == "error")
    for finding in shown:
        mark, colour = _MARKS[finding.verdict]
        click.echo(f"{click.style(f'{mark:4}', fg=colour)}  {finding.area}: {finding.name}: {finding.message}")
        if finding.mend:
            click.echo(f"      -> {finding.mend}")
    return int(verdict == "error")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="A JSON document in place of a table.")
@click.pass_obj
def plugins(options: Globals, as_json: bool) -> None:
    """List runtime handlers, snapshotters and networks, and whether they work."""
    from sampan.daemon import doctor as examination
    from sampan.daemon.config import load

    found = list(examination.plugins(load(options.config, options.places())))
    if as_json:
        render.document(msgspec.to_builtins(found))
        return
    render.table(("TYPE", "NAME", "STATUS", "DETAIL"), [(p.type, p.name, p.status, p.detail) for p in found])
