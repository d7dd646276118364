"""Messages made up from their descriptors, for tests: mostly strange ones, and good ones with one strange field."""

from __future__ import annotations

from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import strategies as st

#: Values that something is wrong with somewhere. None is an absolute path outside of the test's own folder: what a
#: kubelet may name on its machine (log directories, parents of cgroups, mounts), a daemon makes.
TEXTS = [
    *("", "a", "a b", "a\nb", "a\0b", "../a", "a/../../b", "-", "é舢", "\u202e", "x" * 600, "y" * 5000, "%s{}", "a:b"),
    *("default", "eth0=1", "unconfined", "localhost/x", "0-1", "SIGKILL", "ALL", "1.2.3.4", "kernel.msgmax", "rwm"),
]
IMAGES = ["", "127.0.0.1:1/a:1", "UPPER", "a b", "sha256:00", "f" * 64, "127.0.0.1:1/a@sha256:" + "0" * 64]
NUMBERS = [0, 1, 2, 3, 5, 1000, 65535, 65536, -1, -2, (1 << 31) - 1, -(1 << 31), (1 << 63) - 1, -(1 << 63)]
_DEPTH = 6


class Maker:
    """Makes messages up.

    Args:
        folder: Where absolute paths lead to.
        ids: Ids of pods and containers that exist.
        image: An image that exists, or an empty string.
    """

    def __init__(self, folder: str, ids: list[str], image: str = "") -> None:
        self.folder = folder
        self.ids = ids
        self.image = image

    def text(self, name: str) -> st.SearchStrategy[str]:
        """Values for a field of this name."""
        if name.endswith("_id") or name == "id":
            return st.sampled_from([*self.ids, *(each[:8] for each in self.ids), "", "f" * 64, "a\0", "*", "x" * 600])
        if name in ("image", "user_specified_image"):
            return st.sampled_from([*IMAGES, self.image])
        if name in ("cgroup_parent", "pod_cidr", "host_path"):
            return st.sampled_from(["", "..", "/../a", "a:b", "a b", "1.2.3.4/33"])
        paths = [f"{self.folder}/{part}" for part in ("a", "b/c", "../d")]
        return st.sampled_from([*TEXTS, *paths])

    def message(self, kind: Descriptor, depth: int = 0) -> st.SearchStrategy[Any]:
        """Messages of a kind, each field there or not."""
        build = message_factory.GetMessageClass(kind)
        fields = {
            field.name: self.field(field, depth) for field in kind.fields if depth < _DEPTH or not field.message_type
        }
        return st.fixed_dictionaries({}, optional=fields).map(lambda values: build(**values))

    def field(self, field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
        """Values of a field."""
        if field.message_type and field.message_type.GetOptions().map_entry:
            entry = field.message_type.fields_by_name
            keys, values = self.text("key"), self.field(entry["value"], depth + 1)
            return st.dictionaries(keys, values, max_size=2)
        single = self.single(field, depth)
        return st.lists(single, max_size=2) if field.is_repeated else single

    def single(self, field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
        """One value of a field's type."""
        if field.message_type:
            return self.message(field.message_type, depth + 1)
        if field.enum_type:
            return st.sampled_from([0, 1, 2, 3, 99, -1])
        if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
            return st.booleans()
        if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            return self.text(field.name)
        bits = 32 if field.cpp_type in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32) else 64
        unsigned = field.cpp_type in (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64)
        low, high = (0, (1 << bits) - 1) if unsigned else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
        return st.sampled_from([number for number in NUMBERS if low <= number <= high])

    def disturbed(self, good: Any) -> st.SearchStrategy[Any]:
        """``good`` with one field, at any depth, made up anew."""
        return self._path(good.DESCRIPTOR, 0).map(lambda change: _merged(good, change))

    def _path(self, kind: Descriptor, depth: int) -> st.SearchStrategy[Any]:
        build = message_factory.GetMessageClass(kind)

        def one(field: FieldDescriptor) -> st.SearchStrategy[Any]:
            inner = field.message_type
            if inner is not None and inner.fields and not field.is_repeated and depth < _DEPTH:
                values = self._path(inner, depth + 1)
            else:
                values = self.field(field, depth)
            return values.map(lambda value: build(**{field.name: value}))

        return st.sampled_from(list(kind.fields)).flatmap(one)


def _merged(good: Any, change: Any) -> Any:
    message = type(good)()
    message.CopyFrom(good)
    message.MergeFrom(change)
    return message
