"""The command line: a static table of verbs, one file each. Only the verb that runs is imported."""

from __future__ import annotations

import os
import sys
import warnings
from importlib import import_module

VERBS = {
    "demo": "train vanilla and TGO on the embedded images, attack both, write a page",
    "train": "train a network by a recipe (a name or a TOML file) into runs/NAME",
    "attack": "attack a trained network, write a record with witnesses",
    "audit": "judge a network by the strongest attacks known; record, witnesses, page",
    "sweep": "train every defense under the same conditions, rank them, score the best",
    "bench": "speed and memory against this machine's floor and against installed frameworks",
    "doctor": "what this machine has, which path is used, what each missing part costs",
}
HELP = """Train spiking neural networks that stay right under attack, and measure how right they stay.

usage: spikeguard VERB [options]        (spikeguard VERB --help for a verb's options)

{verbs}

exit codes: 0 done; 1 a check failed; 2 bad input (one line: what, where, what is allowed); 130 interrupted
start with: spikeguard demo"""


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP.format(verbs="\n".join(f"  {verb:<8} {what}" for verb, what in VERBS.items())))
        return 0
    if arguments[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"spikeguard {version('spikeguard')}")
        return 0
    verb = arguments[0]
    if verb not in VERBS:
        print(f"spikeguard: unknown verb {verb!r} (known: {', '.join(VERBS)})", file=sys.stderr)
        return 2
    from spikeguard.errors import Interrupted, SpikeguardWarning, UserError

    def show(message: Warning | str, category: type[Warning], *rest: object) -> None:
        if issubclass(category, SpikeguardWarning):
            print(f"spikeguard: warning: {message}", file=sys.stderr)

    warnings.showwarning = show  # type: ignore[assignment]
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    try:
        code: int = import_module(f"spikeguard.cli.{verb}").run(arguments[1:])
        return code
    except UserError as error:
        print(f"spikeguard: {error}", file=sys.stderr)
        return 2
    except Interrupted as error:
        print(f"spikeguard: {error}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("spikeguard: interrupted", file=sys.stderr)
        return 130
