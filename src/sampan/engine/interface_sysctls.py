"""Kernel parameters of a pod's interfaces, which are there only once its network is."""

import os

from sampan import network
from sampan.errors import StageFailed
from sampan.runtime import sysctl
from sampan.spec.sysctl_names import interface_of, path_of


def split(parameters: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Those to set as soon as the pod's namespaces are there, and those that wait for its interfaces."""
    waiting = {name: value for name, value in parameters.items() if interface_of(name)}
    return {name: value for name, value in parameters.items() if name not in waiting}, waiting


def apply(namespace: str, parameters: dict[str, str]) -> None:
    """Set parameters in a pod's network namespace, through the caller's /proc, which no container can change.

    Args:
        namespace: File that it is pinned as.
        parameters: Of interfaces.

    Raises:
        ValueRefused: The network has no such interface, or the kernel no such parameter or value.
        StageFailed: Names the parameter.
    """
    if not parameters:
        return
    fd = network.open_namespace(namespace)
    try:
        with network.inside_namespace(fd):
            for name, value in parameters.items():
                _apply_one(name, value)
    finally:
        os.close(fd)


def _apply_one(name: str, value: str) -> None:
    try:
        sysctl.apply({name: value})
    except OSError as error:
        raise StageFailed(f"set sysctl {name} to {value!r}", error, path=f"/proc/sys/{path_of(name)}") from error
