"""Find a study of this repository by its name: studies are code, and do not ship in the wheel."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import spikeguard
from spikeguard.errors import UserError

Main = Callable[[list[str]], int]


def study_main(name: str) -> Main:
    """``main(arguments)`` of ``studies/NAME/study.py`` in the current folder, or in the checkout that this
    package was installed from in editable mode; UserError if neither has it.
    """
    checkout = Path(spikeguard.__file__).resolve().parents[2]
    for root in (Path.cwd(), checkout):
        if name.isidentifier() and (root / "studies" / name / "study.py").is_file():
            if str(root) not in sys.path:
                sys.path.insert(0, str(root))
            main: Main = import_module(f"studies.{name}.study").main
            return main
    raise UserError(
        f"sweep: {name!r} is neither a .toml file nor a study in ./studies (studies come with a checkout of "
        "the repository, not with the wheel)"
    )
