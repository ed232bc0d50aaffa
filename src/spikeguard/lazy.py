"""Names that load when they are first used, listed once: in the ``.pyi`` stub beside an ``__init__.py``."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module


def read_stub(init: str) -> dict[str, tuple[str, str]]:
    """Public name -> (module, name in it), from the lines ``from MODULE import NAME as NAME`` of the stub.

    ``init`` is the path of the ``__init__.py``. Splitting lines takes a tenth of the time of ``ast.parse``.
    """
    with open(init.removesuffix(".py") + ".pyi", encoding="utf-8") as stub:
        rows = [line.split() for line in stub if line.startswith("from ")]
    return {row[5]: (row[1], row[3]) for row in rows}


def attach(
    package: str, init: str, renamed: Callable[[], Mapping[str, str]] = dict
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package whose stub lists its public names.

    ``renamed()``: old name -> new name, dotted from ``spikeguard``; an old name works with a warning.
    """
    public = read_stub(init)
    names = sorted(public)

    def get(name: str) -> object:
        if name in public:
            module, attribute = public[name]
            found = (
                import_module(f"{module}.{attribute}")
                if module == "spikeguard"
                else getattr(import_module(module), attribute)
            )
            setattr(sys.modules[package], name, found)
            return found
        old = {} if name.startswith("_") else renamed()
        if name in old:
            warnings.warn(
                f"sg.{name} is deprecated since 0.2, use sg.{old[name]}", DeprecationWarning, stacklevel=2
            )
            namespace, _, attribute = old[name].rpartition(".")
            return getattr(import_module(f"spikeguard.{namespace}" if namespace else "spikeguard"), attribute)
        raise AttributeError(_missing(package, name, names, old))

    return get, lambda: names, names


def _missing(package: str, name: str, names: list[str], old: Mapping[str, str]) -> str:
    """One line, with the nearest name and where it is."""
    text = f"module {package!r} has no attribute {name!r}"
    if name.startswith("_"):
        return text
    from spikeguard.errors import nearest

    homes = {new.rpartition(".")[2]: new for new in old.values()} | {n: n for n in names}
    near = nearest(name, homes)
    return f"{text}; did you mean {homes[near]!r}?" if near else text
