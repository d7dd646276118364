"""Letting containers' packets through firewalld: their addresses as sources of a zone that accepts everything.

firewalld rejects what is forwarded between its zones, and writes its tables anew whenever it likes, so that it must be
asked, on the system bus, as the standard ``firewall`` plugin asks it: ``addSource`` and ``removeSource`` of the zone
``trusted``. What was asked is kept as facts. firewalld forgets it when it ends or is reloaded, until a reconcile asks
again.
"""

from ipaddress import ip_address
from typing import Any

from sampan.errors import SampanError, StageFailed, TimedOut, Unavailable, WrongState
from sampan.network import nft
from sampan.network.call import Call
from sampan.network.state import Owner, State

_FACT = "firewalld/"
_NAME = "org.fedoraproject.FirewallD1"
_PATIENCE = 10.0
ZONE = "trusted"


def stands() -> bool:
    """Whether firewalld's table is in this network namespace."""
    return nft.find_chain("firewalld", "filter_FORWARD", 1) is not None


def answers() -> bool:
    """Whether firewalld can be asked for anything."""
    try:
        _ask("querySource", ZONE, "192.0.2.1/32")
    except SampanError:
        return False
    return True


def let_through(call: Call, addresses: list[str], zone: str) -> None:
    """Have firewalld let everything to and from these addresses through.

    Args:
        call: The plugin's turn.
        addresses: The container's, without prefix lengths.
        zone: The zone that they come into.

    Raises:
        Unavailable: It does not run.
        StageFailed: It refused.
    """
    sources = [f"{address}/{ip_address(address).max_prefixlen}" for address in addresses]
    call.session.state.set_fact(f"{_FACT}{zone}/{_tail(call.owner)}", " ".join(sources))
    for source in sources:
        if not _ask("querySource", zone, source):
            _ask("addSource", zone, source)


def _tail(owner: Owner) -> str:
    return f"{owner.network}/{owner.container}/{owner.ifname}"


def _asked(state: State, owner: Owner) -> list[str]:
    return [name for name in state.facts(_FACT) if name.endswith(f"/{_tail(owner)}")]


def shut(state: State, owner: Owner) -> None:
    """Take a container's addresses from their zone; that they, the zone or firewalld are gone is no error."""
    for fact in _asked(state, owner):
        zone = fact.removeprefix(_FACT).split("/")[0]
        for source in state.fact(fact).split():
            try:
                if _ask("querySource", zone, source):
                    _ask("removeSource", zone, source)
            except (Unavailable, StageFailed):
                break
        with state.transaction() as database:
            state.drop_fact(database, fact)


def restore(state: State) -> int:
    """Tell firewalld again what it forgot when it was reloaded; how many addresses those were."""
    count, owners = 0, state.owners()
    for fact in state.facts(_FACT):
        if fact.split("/")[-2] not in owners:
            continue
        zone = fact.removeprefix(_FACT).split("/")[0]
        for source in state.fact(fact).split():
            if not _ask("querySource", zone, source):
                _ask("addSource", zone, source)
                count += 1
    return count


def check(call: Call) -> None:
    """See that the addresses are in their zone.

    Raises:
        WrongState: One is not.
    """
    state = call.session.state
    for fact in _asked(state, call.owner):
        zone = fact.removeprefix(_FACT).split("/")[0]
        for source in state.fact(fact).split():
            if not _ask("querySource", zone, source):
                raise WrongState(f"firewalld's zone {zone} no longer has {source}", hint="add the pod anew")


def _ask(method: str, zone: str, source: str) -> Any:
    """One call of firewalld's interface of zones; its answer."""
    from jeepney import DBusAddress, HeaderFields, MessageType, new_method_call
    from jeepney.io.blocking import open_dbus_connection

    zones = DBusAddress("/org/fedoraproject/FirewallD1", _NAME, f"{_NAME}.zone")
    try:
        with open_dbus_connection(bus="SYSTEM", auth_timeout=_PATIENCE) as connection:
            message = new_method_call(zones, method, "ss", (zone, source))
            reply = connection.send_and_get_reply(message, timeout=_PATIENCE)
    except TimeoutError:
        raise TimedOut(f"firewalld did not answer {method} in {_PATIENCE:.0f} s") from None
    except (OSError, KeyError) as error:
        raise Unavailable(f"firewalld cannot be reached on the system bus: {error}", hint=_hint()) from None
    if reply.header.message_type != MessageType.error:
        return reply.body[0]
    name = str(reply.header.fields.get(HeaderFields.error_name, ""))
    said = str(reply.body[0]) if reply.body else name
    if name.startswith("org.freedesktop.DBus.Error."):
        raise Unavailable(f"firewalld does not run: {said}", hint=_hint())
    raise StageFailed(f"ask firewalld for {method} of {source} in zone {zone}", OSError(22, said))


def _hint() -> str:
    return "start firewalld, or let the firewall plugin use another backend"
