"""``spikeguard completion``: scripts that complete verbs, flags and their choices in a shell."""

from __future__ import annotations

import argparse
from importlib import import_module

from spikeguard.cli import common
from spikeguard.cli.main import VERBS

INSTALL = {
    "bash": "spikeguard completion bash > ~/.local/share/bash-completion/completions/spikeguard",
    "zsh": "spikeguard completion zsh > ~/.zfunc/_spikeguard   (a folder of $fpath, before compinit)",
    "fish": "spikeguard completion fish > ~/.config/fish/completions/spikeguard.fish",
}

PATHS = ("out", "target", "record", "first", "second", "recipe", "transfer")
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
    for verb, what in VERBS.items():
        made: common.Parser = import_module(f"spikeguard.cli.{verb}").parser()
        for action in made._actions:
            _complete_paths(action)
        verbs.add_parser(verb, help=what, description=what, parents=[made], add_help=False)
    return whole


def _complete_paths(action: argparse.Action) -> None:
    """Let the shell offer files or folders where a path is expected."""
    import shtab

    if action.choices is None and action.dest in PATHS:
        action.complete = shtab.FILE  # type: ignore[attr-defined]
    elif action.dest == "data_dir":
        action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
