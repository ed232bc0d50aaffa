"""The package ``nir``, which only the exchange of graphs needs."""

from __future__ import annotations

from types import ModuleType

from spikeguard.errors import UserError


def nir() -> ModuleType:
    """The module; UserError if it is not installed."""
    try:
        import nir as module
    except ImportError as error:
        raise UserError("NIR graphs need the package nir: pip install 'spikeguard[nir]'") from error
    return module  # type: ignore[no-any-return]
