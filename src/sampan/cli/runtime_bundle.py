"""The runtime's modules in one file, so that a cold start opens one and not sixty.

Finding a module costs the interpreter a search of directories, three stats, an open and two reads, and importlib's own
work takes as long again. The bundle holds the compiled code of the modules (without docstrings), lies beside the files
in ``__pycache__``, and is trusted as they are: each module's entry counts only while its source has the size and the
time of change that it had. A start that finds modules missing from the bundle, or changed, writes it anew when its work
is done. Our own modules are imported from it by a few lines in place of importlib (:meth:`Bundle.importer`).

    length of the index, 8 bytes; index; compiled code of each module, by marshal
"""

from __future__ import annotations

import builtins
import marshal
import os
import sys
from _frozen_importlib import ModuleSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import CodeType, ModuleType
    from typing import Any

#: Beside our own modules, those of the standard library that are always needed.
_OTHERS = frozenset(("ctypes", "ctypes._endian", "struct", "types"))

#: Module -> (source, its size, its time of change in ns, whether it is a package, offset of its code, length).
_Index = dict[str, tuple[str, int, int, bool, int, int]]


class Bundle:
    """A finder for ``sys.meta_path``, and the loader of what it finds.

    Args:
        path: The file; it need not be there.
    """

    __slots__ = ("_content", "_index", "_served", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self._index: _Index = {}
        self._content = memoryview(b"")
        self._served: set[str] = set()
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            content = os.read(fd, os.fstat(fd).st_size)
            length = int.from_bytes(content[:8], "little")
            index = marshal.loads(content[8 : 8 + length])
            self._index = index if isinstance(index, dict) else {}
            self._content = memoryview(content)[8 + length :]
        except (OSError, ValueError, EOFError, TypeError):
            self._index = {}  # written by halves, or by another version: written anew at the end
        finally:
            os.close(fd)

    def find_spec(self, name: str, _path: Sequence[str] | None = None, _target: object = None) -> ModuleSpec | None:
        """See importlib.abc.MetaPathFinder: None lets the others look."""
        entry = self._valid(name)
        if entry is None:
            return None
        source, _, _, package, _, _ = entry
        spec = ModuleSpec(name, self, origin=source, is_package=package)  # type: ignore[arg-type]
        spec.has_location = True
        if package:
            spec.submodule_search_locations = [os.path.dirname(source)]
        self._served.add(name)
        return spec

    def _valid(self, name: str) -> tuple[str, int, int, bool, int, int] | None:
        """The entry of a module, if its source is what it was."""
        entry = self._index.get(name)
        if entry is None:
            return None
        try:
            status = os.stat(entry[0])
        except OSError:
            return None
        return entry if status.st_size == entry[1] and status.st_mtime_ns == entry[2] else None

    def importer(self, otherwise: Callable[..., Any]) -> Callable[..., Any]:
        """A function for ``builtins.__import__`` that imports our own modules from here.

        Args:
            otherwise: The interpreter's own, for what is not in the bundle.
        """
        modules = sys.modules

        def load(
            name: str,
            globals: Mapping[str, object] | None = None,  # noqa: A002 -- the names of __import__
            locals: Mapping[str, object] | None = None,  # noqa: A002
            fromlist: Sequence[str] = (),
            level: int = 0,
        ) -> Any:
            # "import a.b" without "from" wants a: rare here.
            if level or not fromlist or not name.startswith("sampan."):
                return otherwise(name, globals, locals, fromlist, level)
            module = modules.get(name) or self._load(name)
            if module is None:
                return otherwise(name, globals, locals, fromlist, level)
            for each in fromlist:
                if not hasattr(module, each) and self._load(f"{name}.{each}") is None:
                    return otherwise(name, globals, locals, fromlist, level)
            return module

        return load

    def _load(self, name: str) -> ModuleType | None:
        """Import a module of the bundle; None leaves it to the interpreter."""
        entry = self._valid(name)
        parent, _, last = name.rpartition(".")
        if entry is None or (parent not in sys.modules and self._load(parent) is None):
            return None
        # The parent may have imported it.
        if name in sys.modules:
            return sys.modules[name]
        source, _, _, package, offset, length = entry
        module = type(sys)(name)
        module.__file__ = source
        module.__package__ = name if package else parent
        if package:
            module.__path__ = [os.path.dirname(source)]
        sys.modules[name] = module
        try:
            exec(marshal.loads(self._content[offset : offset + length]), module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
        if parent:
            setattr(sys.modules[parent], last, module)
        self._served.add(name)
        return module

    def create_module(self, _spec: ModuleSpec) -> None:
        """See importlib.abc.Loader: the usual kind of module."""
        return

    def exec_module(self, module: ModuleType) -> None:
        """See importlib.abc.Loader."""
        _, _, _, _, offset, length = self._index[module.__name__]
        exec(marshal.loads(self._content[offset : offset + length]), module.__dict__)

    def refresh(self) -> None:
        """Write the bundle anew if modules were loaded that it did not serve; if it can't be written, it stays."""
        wanted = {name for name in sys.modules if name.startswith("sampan.") or name in _OTHERS} - {"sampan.cli"}
        if wanted - self._served - {__name__}:
            try:
                self._write(sorted(wanted | self._index.keys()))
            except (OSError, ValueError):
                return

    def _write(self, names: list[str]) -> None:
        index: _Index = {}
        blobs = []
        offset = 0
        for name in names:
            found = self._compiled(name)
            if found is None:
                continue
            source, package, code = found
            status = os.stat(source)
            blob = marshal.dumps(code)
            index[name] = (source, status.st_size, status.st_mtime_ns, package, offset, len(blob))
            blobs.append(blob)
            offset += len(blob)
        head = marshal.dumps(index)
        temporary = f"{self.path}.{os.getpid()}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            view = memoryview(len(head).to_bytes(8, "little") + head + b"".join(blobs))
            while view:
                view = view[os.write(fd, view) :]
            os.rename(temporary, self.path)
        except OSError:
            os.unlink(temporary)
            raise
        finally:
            os.close(fd)

    def _compiled(self, name: str) -> tuple[str, bool, CodeType] | None:
        entry = self._valid(name)
        if entry is not None:
            # Another command's module, or one that came from here: as it is, while its source is.
            return entry[0], entry[3], marshal.loads(self._content[entry[4] : entry[4] + entry[5]])
        module = sys.modules.get(name)
        origin = getattr(module, "__file__", None) or ""
        if not origin.endswith(".py"):
            return None
        with open(origin, "rb") as file:
            code = compile(file.read(), origin, "exec", dont_inherit=True, optimize=2)
        return origin, hasattr(module, "__path__"), code


def install() -> Bundle:
    """Put the bundle of this interpreter's version in front of the other finders."""
    directory = os.path.join(os.path.dirname(__file__), "__pycache__")
    bundle = Bundle(f"{directory}/sampan-runtime.{sys.implementation.cache_tag}.opt-2.bundle")
    sys.meta_path.insert(0, bundle)
    builtins.__import__ = bundle.importer(builtins.__import__)
    return bundle
