"""One call of a plugin: what a CNI executable gets in its environment and on its standard input, and the means to work.

A :class:`Session` holds the sockets that the plugins of one attachment share; a :class:`Call` is one plugin's turn.
"""

import os
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

import msgspec

from sampan.errors import InvalidInput, StageFailed
from sampan.network import netns, nft
from sampan.network.rtnl import Rtnl
from sampan.network.state import SHARED, Owner, State
from sampan.spec.cni import Result
from sampan.wire.nfnetlink import NFPROTO_BRIDGE, Element

_Conf = TypeVar("_Conf", bound=msgspec.Struct)


class Session:
    """Sockets and descriptors for the time of one attachment. For one thread; :meth:`close` it.

    Args:
        state: The state directory.
        netns_path: The container's network namespace; empty when it is gone.
        delegate: How to call the IPAM plugin of a call; given by the caller, who knows where plugins are.
    """

    def __init__(self, state: State, netns_path: str, delegate: "Delegate | None" = None) -> None:
        self.state = state
        self.netns_path = netns_path
        self.delegate = delegate
        #: Whether whoever asked lets the namespace go next, so that deleting links in it would be waiting for nothing.
        self.netns_ends = False
        self._netns = -1
        self._host: Rtnl | None = None
        self._inside: Rtnl | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what was opened."""
        for socket in (self._host, self._inside):
            if socket is not None:
                socket.close()
        self._host = self._inside = None
        fd, self._netns = self._netns, -1
        if fd >= 0:
            os.close(fd)

    @property
    def netns(self) -> int:
        """Descriptor of the container's network namespace.

        Raises:
            InvalidInput: It is not there.
        """
        if self._netns < 0:
            self._netns = netns.open_namespace(self.netns_path)
        return self._netns

    @property
    def netns_gone(self) -> bool:
        """Whether there is no namespace left to work in."""
        if not self.netns_path:
            return True
        try:
            return self.netns < 0
        except InvalidInput:
            return True

    @property
    def host(self) -> Rtnl:
        """Links of the machine."""
        if self._host is None:
            self._host = Rtnl()
        return self._host

    @property
    def inside(self) -> Rtnl:
        """Links of the container."""
        if self._inside is None:
            self._inside = Rtnl(self.netns)
        return self._inside

    @property
    def nft(self) -> nft.Table:
        """Our table."""
        return nft.Table(self.state.table)

    def put_elements(self, elements: Sequence[Element]) -> None:
        """Add elements to our table, which is made when it is not there; the state's transaction must be held."""
        for _ in range(3):
            try:
                self.nft.add(elements)
                return
            except FileNotFoundError:
                bridge = elements[0].family == NFPROTO_BRIDGE
                nft.run(nft.skeleton(self.state.table, bridge=True) if bridge else _whole_table(self.state))
            except FileExistsError:
                # Nobody's by the record: left by a process that died before it could commit.
                self.nft.delete(elements)
        self.nft.add(elements)


def _whole_table(state: State) -> str:
    from sampan.network.masquerade import skeleton

    return skeleton(state)


class Call:
    """One plugin's turn.

    Args:
        session: The attachment's sockets.
        conf: The plugin's configuration with name, cniVersion, runtimeConfig and prevResult put in.
        container_id: Whom it is for.
        ifname: Name of the interface inside.
        args: CNI_ARGS.
    """

    def __init__(
        self, session: Session, conf: dict[str, Any], container_id: str, ifname: str, args: dict[str, str]
    ) -> None:
        self.session = session
        self.conf = conf
        self.args = args
        self.owner = Owner(container_id, ifname, str(conf.get("name", "")))
        self.ifname = ifname
        self.plugin = str(conf.get("type", ""))

    def decode(self, kind: type[_Conf]) -> _Conf:
        """The configuration as the plugin's own structure.

        Raises:
            InvalidInput: With the field.
        """
        return decode(self.conf, kind)

    @property
    def previous(self) -> Result:
        """The result of the plugins before this one.

        Raises:
            InvalidInput: There is none: the plugin works on another's interface only.
        """
        document = self.conf.get("prevResult")
        if document is None:
            raise InvalidInput(f"plugin {self.plugin} must come after one that makes an interface", field="prevResult")
        return decode(document, Result, at="prevResult")

    def rules(self, elements: Sequence[Element], prepare: Callable[[sqlite3.Connection], None] | None = None) -> None:
        """Put elements into our table under this call's owner; the table is made when it is not there.

        Args:
            elements: What to add, all or none.
            prepare: What is to be done before, in the same transaction of the state.
        """
        self._put(self.owner, elements, prepare)

    def shared_rules(self, elements: Sequence[Element]) -> None:
        """Put elements into our table that stay: those of a bridge, which its pods share."""
        self._put(SHARED, elements, None)

    def _put(
        self, owner: Owner, elements: Sequence[Element], prepare: Callable[[sqlite3.Connection], None] | None
    ) -> None:
        with self.session.state.transaction() as database:
            self.session.state.record_rules(database, owner, self.plugin, elements)
            try:
                if prepare is not None:
                    prepare(database)
                self.session.put_elements(elements)
            except OSError as error:
                raise StageFailed(f"add rules of {self.plugin} for {self.owner.container}", error) from error

    def drop_rules(self) -> None:
        """Take this plugin's elements of this owner out again."""
        state = self.session.state
        if not state.rules(self.owner, self.plugin):
            return
        with state.transaction() as database:
            elements = state.rules(self.owner, self.plugin)
            state.forget_rules(database, elements)
            try:
                self.session.nft.delete(elements)
            except OSError as error:
                raise StageFailed(f"delete rules of {self.plugin} for {self.owner.container}", error) from error


#: Calls the IPAM plugin: (command, call, its type) -> result, None for other commands than ADD.
Delegate = Callable[[str, Call, str], Result | None]


def decode(document: Any, kind: type[_Conf], at: str = "") -> _Conf:
    """Read a document as ``kind``, with the field in the error."""
    try:
        return msgspec.convert(document, kind, strict=True)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$")
        field = f"{at}{path.rstrip('`')}".lstrip(".")
        raise InvalidInput(text, field=field) from None
