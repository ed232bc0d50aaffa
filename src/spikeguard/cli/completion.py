"""``spikeguard completion``: scripts that complete verbs, flags and their choices in a shell."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from importlib import import_module

from spikeguard.cli import common
from spikeguard.cli.main import VERBS
from spikeguard.cli.train import FIELD

INSTALL = {
    "bash": "spikeguard completion bash > ~/.local/share/bash-completion/completions/spikeguard",
    "zsh": "spikeguard completion zsh > ~/.zfunc/_spikeguard   (a folder of $fpath, before compinit)",
    "fish": "spikeguard completion fish > ~/.config/fish/completions/spikeguard.fish",
}

PATHS = ("out", "target", "record", "first", "second", "transfer", "matrix")
"""Arguments that are files or folders."""


def parser() -> common.Parser:
    made = common.Parser(
        "completion",
        "Print a script that completes verbs, flags and their choices in your shell.",
        epilog="to install it:\n" + "\n".join(f"  {line}" for line in INSTALL.values()),
    )
    made.add_argument("shell", choices=list(INSTALL), help="your shell")
    return made


def run(arguments: list[str]) -> int:
    given = parser().read(arguments)
    import shtab

    script: str = shtab.complete(whole_parser(), given.shell)
    if given.json:
        common.print_json({"shell": given.shell, "script": script})
    else:
        print(script)
    return 0


def whole_parser() -> argparse.ArgumentParser:
    """One parser of all verbs, made of the parsers of the verbs themselves."""
    whole = argparse.ArgumentParser(prog="spikeguard", description="Robust spiking neural networks.")
    whole.add_argument("-V", "--version", action="store_true", help="print the version")
    verbs = whole.add_subparsers(dest="verb", metavar="VERB")
    known = names()
    for verb, what in VERBS.items():
        made: common.Parser = import_module(f"spikeguard.cli.{verb}").parser()
        for action in made._actions:
            _offer(action, known)
        verbs.add_parser(verb, help=what, description=what, parents=[made], add_help=False)
    return whole


def names() -> dict[str, Iterable[str]]:
    """What the shell offers for arguments that are names, by the argument."""
    from spikeguard.attacks import ATTACKS
    from spikeguard.auditing.flags import KINDS
    from spikeguard.data.sources import DATA
    from spikeguard.training.recipes import RECIPES
    from spikeguard.training.settings import SURROGATES

    return {"attack": ATTACKS, "flag": KINDS, "data": DATA, "recipe": RECIPES, "surrogate": SURROGATES}


def _offer(action: argparse.Action, known: Mapping[str, Iterable[str]]) -> None:
    """Let the shell offer the known names, or files and folders where a path is expected."""
    import shtab

    name = action.dest.removeprefix(FIELD)
    if action.choices is None and name in known:
        action.choices = list(known[name])
    elif action.choices is None and name in PATHS:
        action.complete = shtab.FILE  # type: ignore[attr-defined]
    elif name == "data_dir":
        action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
