"""Honest evaluation: suites of attacks, witnesses, records."""

from __future__ import annotations

from spikeguard.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
