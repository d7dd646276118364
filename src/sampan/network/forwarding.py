"""Letting containers' packets through a ``FORWARD`` chain of iptables that drops by default.

Docker, ufw and others set that policy, and no accept in our own table can overrule another table's drop. So the
``firewall`` plugin, whose job this is, adds what the standard plugin adds, by the ``iptables`` program and in the same
chains: ``FORWARD`` -> ``CNI-FORWARD`` -> the administrator's ``CNI-ADMIN``. A container with host ports gets one rule
more, which the standard plugin lacks: it lets through what was translated. Where nothing drops, nothing is added.
What was added is kept as facts, so that leaving needs no configuration, and a chain that somebody flushed is filled
again.
"""

import errno
from ipaddress import ip_address
from typing import TYPE_CHECKING

from sampan.errors import StageFailed, TimedOut, Unsupported, WrongState
from sampan.network import firewalld, nft
from sampan.network.call import Call
from sampan.network.state import Owner, State

if TYPE_CHECKING:
    import subprocess

_FACT = "forward/"
CHAIN = "CNI-FORWARD"
ADMIN = "CNI-ADMIN"
#: Behind an address in a fact: its container has host ports.
_PORTS = "+ports"
_JUMP = ("FORWARD", "-m", "comment", "--comment", "CNI firewall plugin rules", "-j", CHAIN)
_SECONDS = 30
#: Seconds that the program waits for others of its kind.
_WAIT = "5"
_LEGACY_TABLES = {4: "/proc/net/ip_tables_names", 6: "/proc/net/ip6_tables_names"}


def program(version: int) -> str:
    """The iptables program whose FORWARD chain drops by default in an address family; empty when none does."""
    name = "iptables" if version == 4 else "ip6tables"
    chain = nft.find_chain("filter", "FORWARD", 2 if version == 4 else 10)
    if chain is not None and chain.drops:
        import shutil

        return f"{name}-nft" if shutil.which(f"{name}-nft") else name
    try:
        with open(_LEGACY_TABLES[version], encoding="ascii") as file:
            if "filter" not in file.read().split():
                return ""
    except OSError:
        return ""
    legacy = f"{name}-legacy"
    return legacy if "-P FORWARD DROP" in _output(legacy, "-S", "FORWARD").splitlines() else ""


def obstacles() -> list[tuple[str, str]]:
    """What keeps containers from the outside and no plugin of ours gets out of the way; and the mend."""
    found = []
    for chain in nft.forward_chains():
        if chain.family in (2, 10) and (chain.table, chain.name) == ("filter", "FORWARD"):
            continue
        if chain.table == "firewalld":
            if not firewalld.answers():
                mend = "firewall-cmd --permanent --zone=trusted --add-interface=BRIDGE, then firewall-cmd --reload"
                found.append(("firewalld rejects what is forwarded between its zones, and can't be asked", mend))
        elif chain.drops:
            family = {1: "inet", 2: "ip", 10: "ip6"}.get(chain.family, str(chain.family))
            where = f"{family} {chain.table} {chain.name}"
            mend = f"nft insert rule {where} iifname BRIDGE accept, and the same with oifname"
            found.append((f"chain {chain.name} of table {family} {chain.table} drops what is forwarded", mend))
    return found


def let_through(call: Call, addresses: list[str], admin: str, *, always: bool) -> None:
    """Have FORWARD accept what these addresses send, and answers to it; and what host ports turn to them.

    Args:
        call: The plugin's turn.
        addresses: The container's, without prefix lengths.
        admin: The administrator's chain.
        always: Also where the policy is to accept: the configuration asks for iptables.

    Raises:
        Unsupported: There is no iptables program.
        StageFailed: It refused.
    """
    state = call.session.state
    ports = _PORTS if state.rules(call.owner, "portmap") else ""
    for version in (4, 6):
        own = [address + ports for address in addresses if ip_address(address).version == version]
        name = program(version) if own else ""
        if own and always and not name:
            name = "iptables" if version == 4 else "ip6tables"
        if not name:
            continue
        with state.transaction() as database:
            _make_chains(name, admin, state)
            state.put_fact(database, f"{_FACT}{name}/{_tail(call.owner)}", " ".join(own))
            _restore(name, [rule for address in own for rule in _rules("-A", address)])


def let_ports_through(call: Call) -> None:
    """Have FORWARD accept what host ports turn to a container, if its packets were let through before it had any."""
    state = call.session.state
    for fact in _facts(state, call.owner):
        words = [word.removesuffix(_PORTS) + _PORTS for word in state.fact(fact).split()]
        if words == state.fact(fact).split():
            continue
        with state.transaction() as database:
            state.put_fact(database, fact, " ".join(words))
            _restore(_program_of(fact), [rule for word in words for rule in _rules("-A", word)[2:]])


def _tail(owner: Owner) -> str:
    return f"{owner.network}/{owner.container}/{owner.ifname}"


def _facts(state: State, owner: Owner) -> list[str]:
    return [name for name in state.facts(_FACT) if name.endswith(f"/{_tail(owner)}")]


def _make_chains(name: str, admin: str, state: State) -> None:
    """Make the chains and their jumps; a chain that is made anew gets the rules of everybody it is for."""
    if not _ok(name, "-n", "-L", admin):
        _run(name, "-N", admin)
    if not _ok(name, "-n", "-L", CHAIN):
        _run(name, "-N", CHAIN)
        jump = f'-A {CHAIN} -m comment --comment "CNI firewall plugin admin overrides" -j {admin}'
        known = state.facts(f"{_FACT}{name}/")
        _restore(name, [jump, *(r for fact in known for a in state.fact(fact).split() for r in _rules("-A", a))])
    if not _ok(name, "-C", *_JUMP):
        _run(name, "-I", *_JUMP)


def _rules(how: str, word: str) -> list[str]:
    address = word.removesuffix(_PORTS)
    whole = f"{address}/{ip_address(address).max_prefixlen}"
    rules = [
        f"{how} {CHAIN} -d {whole} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        f"{how} {CHAIN} -s {whole} -j ACCEPT",
    ]
    if word != address:
        rules.append(f"{how} {CHAIN} -d {whole} -m conntrack --ctstate DNAT -j ACCEPT")
    return rules


def shut(state: State, owner: Owner) -> None:
    """Take the rules of a container away; none is no error."""
    for fact in _facts(state, owner):
        with state.transaction() as database:
            _delete(_program_of(fact), state.fact(fact).split())
            state.drop_fact(database, fact)


def _program_of(fact: str) -> str:
    return fact.removeprefix(_FACT).split("/")[0]


def _delete(name: str, words: list[str]) -> None:
    for word in words:
        for rule in _rules("-D", word):
            while _ok(name, *rule.split()):
                pass


def check(call: Call) -> None:
    """See that the rules stand.

    Raises:
        WrongState: One is gone.
    """
    state = call.session.state
    for fact in _facts(state, call.owner):
        for word in state.fact(fact).split():
            if not all(_ok(_program_of(fact), *rule.split()) for rule in _rules("-C", word)):
                address = word.removesuffix(_PORTS)
                raise WrongState(f"FORWARD of iptables no longer lets {address} through", hint="add the pod anew")


def restore(state: State) -> int:
    """Put back the rules that somebody has flushed; how many those were."""
    count, owners = 0, state.owners()
    for fact in state.facts(_FACT):
        name, words = _program_of(fact), state.fact(fact).split()
        if fact.split("/")[-2] not in owners:
            continue
        lost = _lost(name, words)
        if lost:
            with state.transaction():
                _make_chains(name, ADMIN, state)
                _restore(name, _lost(name, words))
        count += len(lost)
    return count


def _lost(name: str, words: list[str]) -> list[str]:
    rules = [rule for word in words for rule in _rules("-A", word)]
    return [rule for rule in rules if not _ok(name, "-C", *rule.split()[1:])]


def tidy() -> None:
    """Remove the chains where nobody's rule is left in them, ours or the standard plugin's."""
    for version in (4, 6):
        name = program(version)
        if name and len(_output(name, "-S", CHAIN).splitlines()) == 2:
            _ok(name, "-D", *_JUMP)
            _ok(name, "-F", CHAIN)
            _ok(name, "-X", CHAIN)
            # Goes only when the administrator has put nothing into it.
            _ok(name, "-X", ADMIN)


# The program.


def _call(words: list[str], text: str = "") -> "subprocess.CompletedProcess[str]":
    import subprocess

    try:
        return subprocess.run(words, input=text, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except FileNotFoundError:
        raise Unsupported(
            f"FORWARD of iptables drops what containers send, and there is no {words[0]} to let it through",
            hint="apt-get install iptables",
        ) from None
    except subprocess.TimeoutExpired:
        raise TimedOut(f"{words[0]} did not end within {_SECONDS} s") from None


def _ok(name: str, *words: str) -> bool:
    return _call([name, "-w", _WAIT, *words]).returncode == 0


def _output(name: str, *words: str) -> str:
    return _call([name, "-w", _WAIT, *words]).stdout


def _run(name: str, *words: str) -> None:
    _raise(_call([name, "-w", _WAIT, *words]), f"{name} {' '.join(words)}")


def _restore(name: str, rules: list[str]) -> None:
    """Apply rules together."""
    text = "\n".join(("*filter", *rules, "COMMIT", ""))
    _raise(_call([f"{name}-restore", "-w", _WAIT, "-n"], text), f"add rules to {CHAIN}")


def _raise(done: "subprocess.CompletedProcess[str]", what: str) -> None:
    if done.returncode:
        first = (done.stderr.strip().splitlines() or ["no reason given"])[0]
        raise StageFailed(what, OSError(errno.EINVAL, first))
