"""Train spiking neural networks that stay right under adversarial attack, and measure how right they stay.

    import spikeguard as sg
    net = sg.load("runs/tgo")
    found = sg.pgd(net, x, y, sg.Linf(8 / 255))

Importing spikeguard does not import torch. Names load when they are first used; ``__init__.pyi`` lists them.
"""

from __future__ import annotations

import ast
import warnings
from importlib import import_module
from pathlib import Path


def _listed() -> dict[str, tuple[str, str]]:
    """Public name -> (module, name there), from the stub."""
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = (node for node in stub.body if isinstance(node, ast.ImportFrom))
    return {a.asname or a.name: (node.module or "", a.name) for node in imports for a in node.names}


_PUBLIC = _listed()
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        module, there = _PUBLIC[name]
        return (
            import_module(f"{module}.{there}")
            if module == "spikeguard"
            else getattr(import_module(module), there)
        )
    from spikeguard.deprecated import NAMES

    if name in NAMES:
        warnings.warn(f"sg.{name} is now sg.{NAMES[name]}", DeprecationWarning, stacklevel=2)
        namespace, _, there = NAMES[name].rpartition(".")
        return getattr(import_module(f"spikeguard.{namespace}" if namespace else "spikeguard"), there)
    raise AttributeError(f"module 'spikeguard' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
