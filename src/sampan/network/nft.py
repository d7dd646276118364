"""Our table in nftables: its skeleton once for a boot, then elements of its sets for each pod.

::

    table inet sampan
      prerouting, output   (dstnat)  fib daddr local -> host_ports: a map lookup of (address,) protocol, port
      postrouting          (srcnat)  what host_ports turned back -> masquerade; what leaves its subnet -> masquerade
      guard                (raw)     packets for 127.0.0.0/8 that came over a bridge of ours -> drop (CVE-2020-8558)
      forward              (filter)  bridges that are isolated from each other
    table bridge sampan
      prerouting           (filter)  frames whose sender is not the container's own (macspoofchk) -> drop

What a mapping turns back to where it came from (a pod that reaches itself or its neighbour by a host port, the machine
by 127.0.0.1) must be masqueraded, and nothing that another DNAT (kube-proxy's) turned: so a hit in the maps sets bit
0x2000 of the packet's mark, the bit that the standard portmap plugin uses for the same.

A pod's rules are elements (:class:`sampan.wire.nfnetlink.Element`): constant time to add, to delete and to match, in
one batch that happens wholly or not at all. They are of plain sets and of maps to addresses: at each new element that
jumps to a chain the kernel walks all elements of all such maps (nft_chain_validate()), so only the rare conditions of
host ports do. What is a subnet's stands in the interval sets ``subnets4`` and ``subnets6``. Nobody else's table is
written.

The skeleton goes through libnftables, by ctypes; where the library is missing through the ``nft`` program.
"""

import ctypes
import errno
import os
import threading
from collections.abc import Iterable, Sequence

from sampan.errors import StageFailed, Unsupported
from sampan.network.rtnl import Kernel
from sampan.wire import nfnetlink
from sampan.wire.nfnetlink import Element

_NETLINK_NETFILTER = 12
_BATCH = (nfnetlink.NFNL_MSG_BATCH_BEGIN, nfnetlink.NFNL_MSG_BATCH_END)
#: Elements in one batch: of all the host ports of a pod, a thousand and more.
_CHUNK = 4096
_NFT_SECONDS = 20

# Applied as one transaction; the second time it replaces the rules and leaves sets and their elements alone.
_SKELETON = """
add table inet {table}
add map inet {table} ports4 { type inet_proto . inet_service : ipv4_addr . inet_service; }
add map inet {table} ports6 { type inet_proto . inet_service : ipv6_addr . inet_service; }
add map inet {table} hostports4 { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }
add map inet {table} hostports6 { type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }
add map inet {table} gates { type inet_proto . inet_service : verdict; }
add map inet {table} gates4 { type ipv4_addr . inet_proto . inet_service : verdict; }
add map inet {table} gates6 { type ipv6_addr . inet_proto . inet_service : verdict; }
add set inet {table} sources4 { type ipv4_addr; }
add set inet {table} sources6 { type ipv6_addr; }
add set inet {table} hairpin4 { type ipv4_addr; }
add set inet {table} hairpin6 { type ipv6_addr; }
add set inet {table} hidden4 { type ipv4_addr; }
add set inet {table} hidden6 { type ipv6_addr; }
add set inet {table} subnets4 { type ipv4_addr . ipv4_addr; flags interval; }
add set inet {table} subnets6 { type ipv6_addr . ipv6_addr; flags interval; }
add set inet {table} mapped { type inet_proto . inet_service; }
add set inet {table} mapped4 { type ipv4_addr . inet_proto . inet_service; }
add set inet {table} mapped6 { type ipv6_addr . inet_proto . inet_service; }
add set inet {table} self4 { type ipv4_addr . ipv4_addr; }
add set inet {table} self6 { type ipv6_addr . ipv6_addr; }
add set inet {table} loopback { type ipv4_addr; }
add set inet {table} guarded { type ifname; }
add set inet {table} secluded { type ifname; }
add set inet {table} within { type ifname . ifname; }
add chain inet {table} host_ports
add chain inet {table} turned
add chain inet {table} prerouting { type nat hook prerouting priority -100; policy accept; }
add chain inet {table} output { type nat hook output priority -100; policy accept; }
add chain inet {table} postrouting { type nat hook postrouting priority 100; policy accept; }
add chain inet {table} guard { type filter hook prerouting priority -300; policy accept; }
add chain inet {table} forward { type filter hook forward priority 0; policy accept; }
flush chain inet {table} host_ports
flush chain inet {table} turned
flush chain inet {table} prerouting
flush chain inet {table} output
flush chain inet {table} postrouting
flush chain inet {table} guard
flush chain inet {table} forward
add rule inet {table} host_ports ip daddr . meta l4proto . th dport vmap @gates4
add rule inet {table} host_ports ip6 daddr . meta l4proto . th dport vmap @gates6
add rule inet {table} host_ports meta l4proto . th dport vmap @gates
add rule inet {table} host_ports meta l4proto . th dport @mapped meta mark set meta mark or 0x2000
add rule inet {table} host_ports ip daddr . meta l4proto . th dport @mapped4 meta mark set meta mark or 0x2000
add rule inet {table} host_ports ip6 daddr . meta l4proto . th dport @mapped6 meta mark set meta mark or 0x2000
add rule inet {table} host_ports dnat ip addr . port to ip daddr . meta l4proto . th dport map @hostports4
add rule inet {table} host_ports dnat ip addr . port to meta l4proto . th dport map @ports4
add rule inet {table} host_ports dnat ip6 addr . port to ip6 daddr . meta l4proto . th dport map @hostports6
add rule inet {table} host_ports ip6 daddr != ::1 dnat ip6 addr . port to meta l4proto . th dport map @ports6
add rule inet {table} prerouting fib daddr type local jump host_ports
add rule inet {table} output fib daddr type local jump host_ports
add rule inet {table} postrouting ct status dnat meta mark and 0x2000 == 0x2000 jump turned
add rule inet {table} turned ip saddr 127.0.0.0/8 ip daddr @loopback masquerade
add rule inet {table} turned ip saddr . ip daddr @self4 masquerade
add rule inet {table} turned ip6 saddr . ip6 daddr @self6 masquerade
add rule inet {table} turned ip daddr @hidden4 masquerade
add rule inet {table} turned ip6 daddr @hidden6 masquerade
add rule inet {table} turned ip daddr @hairpin4 ip saddr . ip daddr @subnets4 masquerade
add rule inet {table} turned ip6 daddr @hairpin6 ip6 saddr . ip6 daddr @subnets6 masquerade
add rule inet {table} postrouting ip saddr @sources4 ip daddr != 224.0.0.0/4 \
    ip saddr . ip daddr != @subnets4 masquerade
add rule inet {table} postrouting ip6 saddr @sources6 ip6 daddr != ff00::/8 \
    ip6 saddr . ip6 daddr != @subnets6 masquerade
add rule inet {table} guard iifname @guarded ip daddr 127.0.0.0/8 drop
add rule inet {table} forward oifname @secluded iifname . oifname @within accept
add rule inet {table} forward oifname @secluded ct state established,related accept
add rule inet {table} forward oifname @secluded iifname @secluded drop
"""

# Frames are checked before anything else on the bridge sees them.
_BRIDGE_SKELETON = """
add table bridge {table}
add set bridge {table} checked { type ifname; }
add set bridge {table} senders { type ifname . ether_addr; }
add chain bridge {table} prerouting { type filter hook prerouting priority -300; policy accept; }
flush chain bridge {table} prerouting
add rule bridge {table} prerouting iifname @checked iifname . ether saddr != @senders drop
"""

#: Sets and maps of the table whose elements belong to containers or bridges.
SETS = tuple(
    line.split()[4]
    for line in _SKELETON.splitlines()
    if line.startswith(("add map", "add set")) and "interval" not in line
)
BRIDGE_SETS = ("checked", "senders")

_library_lock = threading.Lock()
_library: ctypes.CDLL | None = None


class Table:
    """Elements of one table's sets, in the calling thread's network namespace.

    Args:
        name: The table's: the network state's own, see :attr:`sampan.network.state.State.table`.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def add(self, elements: Sequence[Element]) -> None:
        """Add elements, all or none.

        Raises:
            OSError: FileNotFoundError: the table, a set or a chain that is jumped to is not there.
                FileExistsError: an element is there with other data.
        """
        for start in range(0, len(elements), _CHUNK):
            self._commit(nfnetlink.add_elements(self.name, elements[start : start + _CHUNK]))

    def delete(self, elements: Sequence[Element]) -> None:
        """Delete elements; those that are not there are no error."""
        for start in range(0, len(elements), _CHUNK):
            chunk = elements[start : start + _CHUNK]
            try:
                self._commit(nfnetlink.delete_elements(self.name, chunk))
            except FileNotFoundError:
                # Somebody flushed the table, or a crash came between: one by one, so that the rest goes.
                for element in chunk:
                    try:
                        self._commit(nfnetlink.delete_elements(self.name, [element]))
                    except FileNotFoundError:
                        pass

    def elements(self, set_name: str, family: int = nfnetlink.NFPROTO_INET) -> list[Element]:
        """What a set holds; nothing when it is not there."""
        try:
            answers = _kernel().dump(nfnetlink.get_elements(self.name, set_name, family))
        except FileNotFoundError:
            return []
        return [element for answer in answers for element in nfnetlink.parse_elements(answer, family)]

    def delete_table(self, family: int = nfnetlink.NFPROTO_INET) -> None:
        """Delete our table of a family; none is no error."""
        try:
            self._commit([nfnetlink.delete_table(self.name, family)])
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StageFailed(f"delete the nftables table {self.name}", error) from error

    def _commit(self, requests: Iterable[nfnetlink.Request]) -> None:
        batch = [nfnetlink.batch_begin(), *requests, nfnetlink.batch_end()]
        _kernel().exchange(batch, unacknowledged=_BATCH).raise_first()

    def forget_connections(self, protocol: int, ports: Iterable[int]) -> int:
        """Flush conntrack's entries to these local ports, which would keep a new mapping from being seen (UDP)."""
        wanted, count = set(ports), 0
        for family in (2, 10):
            found = [nfnetlink.parse_connection(a) for a in _kernel().dump(nfnetlink.get_connections(family))]
            stale = [c for c in found if c.protocol == protocol and c.destination_port in wanted]
            for error in _kernel().exchange([nfnetlink.delete_connection(family, c) for c in stale]).errors:
                if error is not None and not isinstance(error, FileNotFoundError):
                    raise error
            count += len(stale)
        return count


def find_chain(table: str, name: str, family: int) -> nfnetlink.Chain | None:
    """A chain of anybody's table, or None."""
    exchange = _kernel().exchange([nfnetlink.get_chain(table, name, family)])
    if exchange.errors[0] is not None or not exchange.answers[0]:
        return None
    return nfnetlink.parse_chain(exchange.answers[0][0])


def forward_chains() -> list[nfnetlink.Chain]:
    """The chains of every table that see what is forwarded."""
    try:
        chains = [nfnetlink.parse_chain(answer) for answer in _kernel().dump(nfnetlink.get_chains())]
    except OSError:
        return []
    return [chain for chain in chains if chain.hook == nfnetlink.NF_INET_FORWARD and chain.family in (1, 2, 10)]


_thread = threading.local()


def _kernel() -> Kernel:
    """The calling thread's socket to nftables, kept open.

    Closing one waits until the kernel has freed what was deleted, 3 to 20 ms (nft_rcv_nl_event()), so a thread keeps
    its own, as long as it stays in its network namespace.
    """
    where = (os.getpid(), os.stat("/proc/thread-self/ns/net").st_ino)
    kept: tuple[tuple[int, int], Kernel] | None = getattr(_thread, "kept", None)
    if kept is None or kept[0] != where:
        if kept is not None:
            kept[1].close()
        kept = _thread.kept = (where, Kernel(_NETLINK_NETFILTER))
    return kept[1]


def skeleton(table: str, *, bridge: bool = False) -> str:
    """The commands that make our table, or the one for frames on bridges."""
    return (_BRIDGE_SKELETON if bridge else _SKELETON).replace("{table}", table)


def subnets(table: str, networks: Iterable[str]) -> str:
    """Commands after which ``networks`` are the subnets of our table; to be run behind the skeleton's."""
    text = f"flush set inet {table} subnets4\nflush set inet {table} subnets6\n"
    for network in networks:
        name = "subnets6" if ":" in network else "subnets4"
        text += f"add element inet {table} {name} {{ {network} . {network} }}\n"
    return text


def gate(table: str, chain: str, conditions: Sequence[str]) -> str:
    """Commands that make a chain which ends a packet's way to the host ports unless all ``conditions`` hold.

    Args:
        table: Our table.
        chain: The chain's name.
        conditions: Matches of nft for packets to be kept out.
    """
    rules = "".join(f"add rule inet {table} {chain} {condition} accept\n" for condition in conditions)
    return f"add chain inet {table} {chain}\nflush chain inet {table} {chain}\n{rules}"


def run(commands: str) -> None:
    """Run nft commands as one transaction, in the calling thread's network namespace.

    Raises:
        Unsupported: Neither libnftables nor nft is installed, or the kernel lacks nftables.
        StageFailed: The kernel refused them.
    """
    with _library_lock:
        library = _load()
        failed = _run_library(library, commands) if library is not None else _run_program(commands)
    if failed:
        first = failed.strip().splitlines()[0] if failed.strip() else "no reason given"
        if "Operation not supported" in failed or "Protocol not supported" in failed:
            raise Unsupported(f"nftables: {first}", hint="the kernel needs CONFIG_NF_TABLES_INET and CONFIG_NFT_NAT")
        raise StageFailed("change the nftables table `sampan`", OSError(errno.EINVAL, first))


def _load() -> ctypes.CDLL | None:
    global _library
    if _library is None:
        try:
            library = ctypes.CDLL("libnftables.so.1")
        except OSError:
            return None
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_new.argtypes = [ctypes.c_uint32]
        library.nft_ctx_free.argtypes = [ctypes.c_void_p]
        library.nft_ctx_buffer_error.argtypes = [ctypes.c_void_p]
        library.nft_ctx_buffer_output.argtypes = [ctypes.c_void_p]
        library.nft_ctx_get_error_buffer.argtypes = [ctypes.c_void_p]
        library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        _library = library
    return _library


def _run_library(library: ctypes.CDLL, commands: str) -> str:
    context = library.nft_ctx_new(0)
    if not context:
        return "libnftables gave no context"
    try:
        library.nft_ctx_buffer_error(context)
        library.nft_ctx_buffer_output(context)
        if library.nft_run_cmd_from_buffer(context, commands.encode()) == 0:
            return ""
        return (library.nft_ctx_get_error_buffer(context) or b"").decode("utf-8", "replace") or "refused"
    finally:
        library.nft_ctx_free(context)


def _run_program(commands: str) -> str:
    import subprocess

    try:
        done = subprocess.run(
            ["nft", "-f", "-"], input=commands, capture_output=True, text=True, timeout=_NFT_SECONDS, check=False
        )
    except FileNotFoundError:
        raise Unsupported(
            "neither libnftables nor the nft program is installed", hint="apt-get install nftables"
        ) from None
    return "" if done.returncode == 0 else done.stderr or "refused"
