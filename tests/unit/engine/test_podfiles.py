"""The files of a pod."""

from pathlib import Path

import pytest

from sampan.engine import podfiles
from sampan.engine.model import Dns, Metadata, PodSpec


@pytest.mark.parametrize("dns", [None, Dns()])
def test_a_pod_that_says_nothing_of_dns_has_the_machines(tmp_path: Path, dns: Dns | None) -> None:
    podfiles.write(str(tmp_path), PodSpec(Metadata("p")), "p", (), dns)
    machines = Path("/etc/resolv.conf")
    assert (tmp_path / "resolv.conf").read_text() == (machines.read_text() if machines.exists() else "")


def test_a_pod_may_have_options_of_dns_alone(tmp_path: Path) -> None:
    podfiles.write(str(tmp_path), PodSpec(Metadata("p")), "p", (), Dns(options=("ndots:2",)))
    assert (tmp_path / "resolv.conf").read_text() == "options ndots:2\n"
