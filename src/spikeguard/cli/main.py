"""The command line: a static table of verbs, one file each. Only the verb that runs is imported."""

from __future__ import annotations

import io
import os
import sys
import warnings
from importlib import import_module

from spikeguard.runtime.version import __version__

VERBS = {
    "demo": "train vanilla, two controls and TGO on the embedded images, attack them, write a page",
    "train": "train a network by a recipe (a name or a TOML file) into runs/NAME",
    "attack": "attack a network by one attack; a record with witnesses",
    "audit": "judge a network by the strongest attacks known; record, witnesses, page",
    "verify": "check records and their witnesses against the network, one forward pass each",
    "compare": "a paired test of two audits",
    "merge": "the union of audits of the same network and images",
    "export": "records as a table (CSV, LaTeX, Markdown) or as a paragraph on the method",
    "explain": "what a flag of an audit means, why it matters, what to do",
    "sweep": "train and audit every network of a matrix (a TOML file), or run a study",
    "bench": "speed and memory against this machine's floor and against installed frameworks",
    "doctor": "what this machine has, which path is used, what each missing part costs",
    "completion": "a script that completes verbs and flags in bash, zsh or fish",
}
HELP = """Train spiking neural networks that stay right under attack, and measure how right they stay.

usage: spikeguard VERB [options]        (spikeguard VERB --help for a verb's options)

{verbs}

exit codes: 0 done; 1 a check failed; 2 bad input (one line: what, where, what is allowed); 130 interrupted
start with: spikeguard demo"""


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name beyond the terminal's encoding is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP.format(verbs="\n".join(f"  {verb:<10} {what}" for verb, what in VERBS.items())))
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"spikeguard {__version__}")
        return 0
    from spikeguard.errors import SpikeguardWarning

    def show(message: Warning | str, category: type[Warning], *rest: object) -> None:
        if issubclass(category, SpikeguardWarning):
            print(f"spikeguard: warning: {message}", file=sys.stderr)

    warnings.showwarning = show  # type: ignore[assignment]
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    return _exit_code(arguments[0], arguments[1:])


def _exit_code(verb: str, arguments: list[str]) -> int:
    """Run the verb; every error that a user can cause is one line on stderr."""
    from spikeguard.errors import Interrupted, UserError, unknown

    try:
        if verb not in VERBS:
            raise unknown("verb", verb, VERBS)
        if any("\0" in argument for argument in arguments):
            raise UserError(f"{verb}: an argument holds the character NUL, which no name or file may")
        code: int = import_module(f"spikeguard.cli.{verb}").run(arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        return _fail(str(error), 2)
    except Interrupted as error:
        return _fail(str(error), 130)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except MemoryError:
        return _fail(f"{verb}: not enough memory; take fewer images or a smaller batch", 2)
    except BrokenPipeError:  # the reader of our output, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _fail(message: str, code: int) -> int:
    from spikeguard.cli.common import printable

    print(f"spikeguard: {printable(message)}", file=sys.stderr)
    return code
