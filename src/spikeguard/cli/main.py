"""The command line: a static table of verbs, one file each. Only the verb that runs is imported."""

from __future__ import annotations

import os
import re
import sys
import warnings
from importlib import import_module

from spikeguard.cli.place import check_place
from spikeguard.cli.streams import own_streams
from spikeguard.runtime.shown import one_line
from spikeguard.runtime.stop import end_at_once, exit_code, ignore_signals
from spikeguard.runtime.version import __version__

NO_MEMORY = re.compile(
    "can't allocate memory|not enough memory|out of memory|bad_alloc|can't start new thread"
    "|failed to map segment|[Cc]annot allocate memory"
)
"""What torch says where memory ends."""
VERBS = {
    "demo": "train vanilla, two controls and TGO on the embedded images, attack them, write a page",
    "train": "train a network by a recipe (a name or a TOML file) into runs/NAME",
    "attack": "attack a network by one attack; a record with witnesses",
    "audit": "judge a network by the strongest attacks known; record, witnesses, page",
    "diagnose": "why a network is fragile: potentials, flips, held spikes; record and page",
    "verify": "check records and their witnesses against the network, one forward pass each",
    "compare": "a paired test of two audits",
    "merge": "the union of audits of the same network and images",
    "export": "records as a table or as a paragraph on the method; a network as a NIR graph",
    "explain": "what a flag of an audit means, why it matters, what to do",
    "table": "networks by attacks at several budgets, as CSV, LaTeX, Markdown and a picture",
    "reproduce": "the paper's experiments; or train and measure the network of a record again",
    "sweep": "train and audit every network of a matrix (a TOML file), or run a study",
    "bench": "speed and memory against this machine's floor and against installed frameworks",
    "zoo": "the networks that come with the package, and what their audits found",
    "doctor": "what this machine has, which path is used, what each missing part costs",
    "completion": "a script that completes verbs and flags in bash, zsh or fish",
}
HELP = """Train spiking neural networks that stay right under attack, and measure how right they stay.

usage: spikeguard VERB [options]        (spikeguard VERB --help for a verb's options)

{verbs}

exit codes: 0 done; 1 a check failed; 2 bad input (one line: what, where, what is allowed); 130 interrupted by
Ctrl-C, 143 by SIGTERM; state is kept
start with: spikeguard demo"""


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; returns the exit code. Without arguments: as the program, with those of its command."""
    if arguments is not None:
        return _run(arguments)
    end_at_once()
    own_streams()
    try:
        code = _run(sys.argv[1:])
    except SystemExit as end:
        code = int(end.code or 0)
    ignore_signals()
    return code


def _run(arguments: list[str]) -> int:
    """Do what the arguments ask for; every error that a user can cause is one line on stderr."""
    from spikeguard.errors import Interrupted, SpikeguardWarning, UserError

    verb = arguments[0] if arguments else "help"
    try:
        if (text := _text(verb)) is not None:
            print(text)
            code = 0
        else:
            code = _verb(verb, arguments[1:])
        sys.stdout.flush()
        return code
    except (UserError, SpikeguardWarning) as error:  # a warning where python -W error makes it one
        return _fail(str(error), 2)
    except Interrupted as error:
        return _fail(str(error), exit_code())
    except KeyboardInterrupt:
        return _fail("interrupted", exit_code())
    except OSError as error:  # a name that is too long, a disk that is gone
        return _fail(f"{verb}: {error.filename or ''} {error.strerror or error}".replace(":  ", ": "), 2)
    except RecursionError:
        return _fail(f"{verb}: what it reads is nested too deeply", 2)
    except (MemoryError, RuntimeError, ImportError) as error:
        if not isinstance(error, MemoryError) and not NO_MEMORY.search(str(error)):
            raise
        return _fail(f"{verb}: not enough memory; take fewer images, a smaller batch or a smaller network", 2)


def _text(verb: str) -> str | None:
    """What the program says of itself, without a verb."""
    if verb in ("-h", "--help", "help"):
        return HELP.format(verbs="\n".join(f"  {name:<10} {what}" for name, what in VERBS.items()))
    return f"spikeguard {__version__}" if verb in ("-V", "--version") else None


def _verb(verb: str, arguments: list[str]) -> int:
    """Run a verb."""
    from spikeguard.errors import SpikeguardWarning, UserError, unknown

    if verb not in VERBS:
        raise unknown("verb", verb, VERBS)
    if any("\0" in argument for argument in arguments):
        raise UserError(f"{verb}: an argument holds the character NUL, which no name or file may")
    check_place()

    def show(message: Warning | str, category: type[Warning], *rest: object) -> None:
        if issubclass(category, SpikeguardWarning):
            print(f"spikeguard: warning: {one_line(str(message))}", file=sys.stderr)

    warnings.showwarning = show  # type: ignore[assignment]
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    try:
        code: int = import_module(f"spikeguard.cli.{verb}").run(arguments)
    except SystemExit:  # --help
        sys.stdout.flush()
        raise
    return code


def _fail(message: str, code: int) -> int:
    print(f"spikeguard: {one_line(message)}", file=sys.stderr)
    return code
