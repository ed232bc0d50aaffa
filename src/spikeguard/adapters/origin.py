"""Where a module's class comes from. Nothing is imported: classes are known by their names and paths."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn


def from_package(module: nn.Module, path: str) -> bool:
    """Does the module's class, or one that it derives from, come from ``path``?"""
    return any(c.__module__ == path or c.__module__.startswith(path + ".") for c in type(module).__mro__)


def derives_from(module: nn.Module, package: str, names: Collection[str]) -> bool:
    """Does the module's class derive from one of a package's classes of these names?"""
    return any(
        c.__name__ in names and c.__module__.partition(".")[0] == package for c in type(module).__mro__
    )
