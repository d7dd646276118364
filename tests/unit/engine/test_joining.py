"""What a pod's request says about its network."""

import pytest

from sampan.engine import joining
from sampan.engine.model import Metadata, PodSpec
from sampan.errors import InvalidInput


@pytest.mark.parametrize(
    ("network", "names"),
    [("", ("",)), ("none", ()), ("blue", ("blue",)), (",blue,red", ("", "blue", "red"))],
)
def test_networks(network: str, names: tuple[str, ...]) -> None:
    assert joining.names(PodSpec(metadata=Metadata(name="x"), network=network)) == names


@pytest.mark.parametrize(
    ("text", "rate"), [("10M", 10_000_000), ("1k", 1000), ("1.5M", 1_500_000), ("2Ki", 2048), ("5000", 5000)]
)
def test_rates(text: str, rate: int) -> None:
    found = joining.bandwidth({joining.EGRESS: text})
    assert found is not None
    assert (found.egress_rate, found.ingress_rate, found.ingress_burst) == (rate, 0, 0)
    assert found.egress_burst > 0


def test_no_rates() -> None:
    assert joining.bandwidth({"other": "1M"}) is None


@pytest.mark.parametrize("text", ["much", "1", "-5M", "1X", "2P", "nan", "inf"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(InvalidInput, match="ingress-bandwidth"):
        joining.bandwidth({joining.INGRESS: text})
