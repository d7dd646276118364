"""What a pod's request says about its network, in the network's own terms."""

from sampan import network
from sampan.engine.model import PodSpec
from sampan.errors import InvalidInput

#: Annotations by which Kubernetes asks for rates (containerd's CRI takes them the same way).
INGRESS = "kubernetes.io/ingress-bandwidth"
EGRESS = "kubernetes.io/egress-bandwidth"
_BURST = 0xFFFFFFFF
_UNITS = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "P": 10**15,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}


def names(spec: PodSpec) -> tuple[str, ...]:
    """The networks that a pod joins; the empty name is the default one, no name at all is loopback only."""
    return () if spec.network == "none" else tuple(spec.network.split(","))


def bandwidth(annotations: dict[str, str]) -> network.Bandwidth | None:
    """The rates asked for, or None.

    Raises:
        InvalidInput: With the annotation.
    """
    ingress, egress = _rate(annotations, INGRESS), _rate(annotations, EGRESS)
    if not ingress and not egress:
        return None
    return network.Bandwidth(
        ingress_rate=ingress,
        ingress_burst=_BURST if ingress else 0,
        egress_rate=egress,
        egress_burst=_BURST if egress else 0,
    )


def _rate(annotations: dict[str, str], name: str) -> int:
    """Bits a second: a number with a unit, as Kubernetes writes quantities."""
    text = annotations.get(name, "").strip()
    if not text:
        return 0
    digits = text.rstrip("kKMGTPi")
    unit = _UNITS.get(text[len(digits) :])
    try:
        rate = int(float(digits) * unit) if unit is not None else 0
    except (ValueError, OverflowError):
        rate = 0
    if not 1000 <= rate <= 10**15:
        raise InvalidInput(f"{text!r} is no rate from 1k to 1P", field=f"annotations[{name}]")
    return rate
