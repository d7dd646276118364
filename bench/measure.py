"""How a figure is made: contestants take turns in one run, so that all meet the same machine; medians are compared."""

from __future__ import annotations

import os
import random
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

C = TypeVar("C")


@dataclass(frozen=True)
class Budget:
    """At most ``ratio`` times what ``peer`` needs, or at most ``limit`` in the row's own unit."""

    peer: str = ""
    ratio: float = 0.0
    limit: float = 0.0

    def text(self, unit: str) -> str:
        """As the table prints it."""
        if self.peer:
            return f"<= {self.ratio:.2g} x {self.peer}"
        return f"<= {self.limit:g} {unit}" if self.limit else ""

    def met(self, ours: float, others: Mapping[str, float]) -> bool | None:
        """Whether the figure is within the budget; None if the peer was not there."""
        if self.peer:
            return ours <= self.ratio * others[self.peer] if self.peer in others else None
        return ours <= self.limit if self.limit else None


@dataclass(frozen=True)
class Row:
    """One line of the table: our figure, the peers' and the budget. Smaller is better."""

    work: str
    unit: str
    ours: float
    peers: dict[str, float] = field(default_factory=dict)
    budget: Budget = Budget()


def take_turns(contestants: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 2) -> dict[str, float]:
    """Median milliseconds of each contestant's call, over rounds in which each is called once."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + warm_up):
        for name, call in _in_some_order(contestants, number):
            began = time.perf_counter()
            call()
            if number >= warm_up:
                times[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in times.items()}


def take_turns_in_parts(
    contestants: Mapping[str, Callable[[], dict[str, float]]], rounds: int, warm_up: int = 2
) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of each part that each contestant's call tells of, over rounds in which each is called once."""
    times: dict[str, dict[str, list[float]]] = {name: {} for name in contestants}
    for number in range(rounds + warm_up):
        for name, call in _in_some_order(contestants, number):
            for part, value in call().items():
                if number >= warm_up:
                    times[name].setdefault(part, []).append(value)
    return times


def _in_some_order(contestants: Mapping[str, C], number: int) -> list[tuple[str, C]]:
    """The order of one round: a call meets what the kernel still takes down after the last one, not always the same."""
    order = list(contestants.items())
    random.Random(number).shuffle(order)
    return order


class Clock:
    """Adds up milliseconds by name, of the wall and, as "NAME cpu", of the processor: of the children that were waited
    for meanwhile, or of a process with its children.

    Args:
        pid: That process; 0 for our own children.
    """

    def __init__(self, pid: int = 0) -> None:
        self._pid = pid
        self.times: dict[str, float] = {}

    def time(self, name: str, call: Callable[[], object]) -> None:
        """Calls, and adds how long it took."""
        cpu, began = self._processor(), time.perf_counter()
        call()
        wall = 1000 * (time.perf_counter() - began)
        self.times[name] = self.times.get(name, 0.0) + wall
        self.times[f"{name} cpu"] = self.times.get(f"{name} cpu", 0.0) + self._processor() - cpu

    def _processor(self) -> float:
        if not self._pid:
            usage = resource.getrusage(resource.RUSAGE_CHILDREN)
            return 1000 * (usage.ru_utime + usage.ru_stime)
        with open(f"/proc/{self._pid}/stat", encoding="ascii") as file:
            fields = file.read().rpartition(")")[2].split()
        return 1000 * sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def medians(times: Mapping[str, list[float]]) -> dict[str, float]:
    """Median of each list, for parts that are timed inside one call."""
    return {name: statistics.median(values) for name, values in times.items() if values}


def pss(pid: int) -> float:
    """Proportional share of memory of a process, in MB (10^6 bytes)."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(f"process {pid} has no Pss line")


def table(rows: list[Row]) -> str:
    """The rows as text, a ratio beside each peer's figure."""
    lines = [("", "sampan", "peers (ratio: sampan / peer)", "budget", "")]
    for row in rows:
        peers = ",  ".join(
            f"{name} {_figure(value, row.unit)} ({row.ours / value:.2f})" for name, value in row.peers.items()
        )
        met = row.budget.met(row.ours, row.peers)
        verdict = {True: "met", False: "MISSED", None: ""}[met]
        lines.append((row.work, _figure(row.ours, row.unit), peers, row.budget.text(row.unit), verdict))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _figure(value: float, unit: str) -> str:
    return f"{value:.1f} {unit}" if value >= 1 else f"{value:.2f} {unit}"
