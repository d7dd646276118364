"""`sampan logs`: what a container has printed, from its CRI log file."""

import os
import time

import click

from sampan.cli import find
from sampan.cli.main import Globals
from sampan.cli.session import open_engine
from sampan.engine.engine import Engine
from sampan.engine.model import ContainerRecord
from sampan.errors import InvalidInput, NotFound
from sampan.wire import crilog

_CHUNK = 1 << 20
#: Seconds between looks at a log that is followed.
_POLL = 0.1


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on as it prints more.")
@click.option("-t", "--timestamps", is_flag=True, help="Show when each line came.")
@click.option("-n", "--tail", default="all", metavar="N", help="Only the last lines.")
@click.argument("container")
@click.pass_obj
def logs(options: Globals, follow: bool, timestamps: bool, tail: str, container: str) -> None:
    """Show what a container has printed."""
    if tail != "all" and not tail.isdigit():
        raise InvalidInput(f'"{tail}" is no number', field="--tail")
    with open_engine(options) as engine:
        record = find.container(engine, container)
        if not record.log_path:
            raise NotFound(f"container {record.id[:12]} was made without a log file")
        try:
            fd = os.open(record.log_path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise NotFound(f"log {record.log_path}: {error.strerror}") from error
        try:
            if tail != "all":
                os.lseek(fd, crilog.tail_offset(fd, int(tail)), os.SEEK_SET)
            _print(engine, record, fd, follow=follow, timestamps=timestamps)
        finally:
            os.close(fd)


def _print(engine: Engine, record: ContainerRecord, fd: int, *, follow: bool, timestamps: bool) -> None:
    rest = b""
    while True:
        # Asked before the read: what it printed last is then certainly in the file.
        ended = not follow or engine.containers.get(record.id).state != "running"
        while data := os.read(fd, _CHUNK):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                _print_line(line, timestamps=timestamps)
        if ended:
            return
        time.sleep(_POLL)


def _print_line(line: bytes, *, timestamps: bool) -> None:
    try:
        parsed = crilog.parse(line)
    except InvalidInput:
        return  # half a line that a full disk left
    prefix = f"{parsed.time} ".encode() if timestamps else b""
    click.echo(prefix + parsed.content, nl=False, err=parsed.stream == "stderr")
