"""Pod networking: the Container Network Interface, with the standard plugins built in and in process.

The public names of this package are its interface; modules below it are private to it. ``load`` gives the networks of a
directory; ``attach`` and ``detach`` make a container join and leave them. Every call may come from any thread of any
process. "The machine" means the network namespace of the calling thread.
"""

from sampan.network.attach import Attached, Attachment, Bandwidth, Dns, PortMapping, attach, check, detach
from sampan.network.config import Networks
from sampan.network.conflist import NetworkList
from sampan.network.execution import PluginFailed
from sampan.network.foreign import Program, programs
from sampan.network.forwarding import obstacles
from sampan.network.manage import (
    Member,
    Reconciled,
    Status,
    create,
    dead,
    free,
    members,
    mend,
    reconcile,
    remove,
    status,
    subnets,
    tidy,
)
from sampan.network.names import publish as publish_names
from sampan.network.netns import inside as inside_namespace
from sampan.network.netns import open_namespace
from sampan.network.state import State

__all__ = [
    "Attached",
    "Attachment",
    "Bandwidth",
    "Dns",
    "Member",
    "NetworkList",
    "Networks",
    "PluginFailed",
    "PortMapping",
    "Program",
    "Reconciled",
    "Status",
    "attach",
    "check",
    "create",
    "dead",
    "detach",
    "free",
    "inside_namespace",
    "load",
    "members",
    "mend",
    "obstacles",
    "open_namespace",
    "programs",
    "publish_names",
    "reconcile",
    "remove",
    "status",
    "subnets",
    "tidy",
]

#: Where external plugins are looked for: the place that Kubernetes uses, and Debian's.
BIN_DIRS = ("/opt/cni/bin", "/usr/lib/cni")


def load(
    conf_dir: str, *, state_dir: str, bin_dirs: tuple[str, ...] = BIN_DIRS, default: bool = True, ending: int = -1
) -> Networks:
    """The networks that ``conf_dir`` configures.

    Args:
        conf_dir: Directory of CNI configurations; it is looked at anew whenever it has changed.
        state_dir: Where leases, rules and cached results are kept; made if missing.
        bin_dirs: Where external plugins are.
        default: Whether a built-in bridge network stands in for a directory that has no configuration.
        ending: A descriptor that can be read once the caller ends: an external plugin under way is ended then.
    """
    return Networks(conf_dir, State(state_dir), bin_dirs, default=default, ending=ending)
