"""Requests that hold for no engine."""

import pytest

from sampan.engine import checks
from sampan.engine.model import Metadata, PodSpec, PortMapping
from sampan.errors import InvalidInput

METADATA = Metadata(name="p", uid="u", namespace="n")


@pytest.mark.parametrize("value", ["250\t32000\t100\t128", "1024 65535", ""])
def test_a_sysctl_has_one_line(value: str) -> None:
    checks.pod(PodSpec(metadata=METADATA, sysctls={"kernel.sem": value}))


@pytest.mark.parametrize("value", ["1\n2", "1\r", "\0", "\x1b[2J"])
def test_a_sysctl_has_no_other_line(value: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        checks.pod(PodSpec(metadata=METADATA, sysctls={"kernel.sem": value}))
    assert caught.value.field == 'sysctls["kernel.sem"]'


def test_a_port_of_the_machine_leads_to_one_of_the_pod() -> None:
    one = PortMapping(80, 18250)
    checks.pod(PodSpec(metadata=METADATA, ports=(one, one, PortMapping(81, 18250, "udp"), PortMapping(81, 0))))
    with pytest.raises(InvalidInput, match="18250 leads to 80 already") as caught:
        checks.pod(PodSpec(metadata=METADATA, ports=(one, PortMapping(81, 18250))))
    assert caught.value.field == "port_mappings[1].host_port"
