"""What verbs share: parsers with one-line errors, help texts, progress with an ETA, tables, threads."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from spikeguard.errors import UserError, nearest
from spikeguard.records.files import plain
from spikeguard.runtime.shown import one_line, printable

if TYPE_CHECKING:
    from spikeguard.records.schema import Flag

THREADS_PER_CORE = 4  # beyond this torch only gets slower, and at some thousand threads it aborts
NO_DEFAULT: tuple[object, ...] = (None, False, [], (), argparse.SUPPRESS)
"""Defaults that say nothing to a reader of the help."""


class Help(argparse.RawDescriptionHelpFormatter):
    """Help that shows a default where there is one, and leaves it out where the text names it."""

    def __init__(self, prog: str) -> None:
        super().__init__(
            prog, max_help_position=36, width=max(80, min(110, shutil.get_terminal_size().columns))
        )

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help
        if text is None or action.default in NO_DEFAULT or "default" in text:
            return text
        return f"{text} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, with the nearest name, and exit code 2."""

    def __init__(self, verb: str, description: str, epilog: str | None = None) -> None:
        super().__init__(
            prog=f"spikeguard {verb}",
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=Help,
        )
        self.add_argument("--threads", type=thread_count, help="CPU threads (default: all cores)")
        self.add_argument(
            "--json", action="store_true", help="print the record as JSON on stdout instead of a table"
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog.removeprefix('spikeguard ')}: {message} (see {self.prog} --help)")

    def options(self) -> list[str]:
        """All flags, such as ``--out``."""
        return [flag for action in self._actions for flag in action.option_strings]

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse the arguments of a verb; UserError names what is wrong and the nearest flag."""
        given, rest = self.parse_known_args(arguments)
        if rest:
            flag = rest[0].partition("=")[0]
            near = nearest(flag, self.options()) if flag.startswith("-") else None
            hint = f"; did you mean {near}?" if near else ""
            self.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
        return given

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            near = nearest(str(value), known)
            hint = f"; did you mean {near!r}?" if near else ""
            raise argparse.ArgumentError(
                action, f"invalid choice: {value!r} (choose from {', '.join(known)}){hint}"
            )


def add_data_options(parser: argparse.ArgumentParser, of_user: bool = False) -> None:
    """The flags of the verbs that read images; ``of_user``: the model may be the user's own."""
    folder = "folder of the data set (default: SPIKEGUARD_DATA, else the system's)"
    if of_user:
        parser.add_argument(
            "--data",
            type=named,
            help="data set of a package.module:factory (a run folder knows its own): a name, a folder with "
            "one folder of images a class, or an .npz file with x and y",
        )
        parser.add_argument(
            "--weights",
            type=named,
            metavar="FILE",
            help="weights of a package.module:factory: .safetensors, or a state dict that torch saved",
        )
        folder += "; for a factory without --data, a folder of images"
    parser.add_argument("--data-dir", type=named, help=folder)
    parser.add_argument("--device", type=named, help="cpu or cuda (default: cuda where there is one)")


def own_files(given: argparse.Namespace, target: str) -> list[str]:
    """Files of the user's own that a result on a factory depends on, beside ``--data``."""
    images = given.data_dir if ":" in target and given.data is None else None
    return [name for name in (images, given.weights) if name is not None]


def positive(text: str, most: int = 10**9) -> int:
    """A whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} must be a whole number of at least 1")
    if value > most:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} must be at most {most}")
    return value


def up_to(most: int) -> Callable[[str], int]:
    """A whole number between 1 and ``most``: more would not end."""
    return lambda text: positive(text, most)


def seed(text: str) -> int:
    """A whole number that a generator takes."""
    try:
        value = int(text)
    except ValueError:
        value = 2**63
    if not -(2**63) <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} must be a whole number of at most 63 bits")
    return value


def named(text: str) -> str:
    """A name that is not empty: an empty one would mean the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} names nothing")
    return text


def path(text: str) -> Path:
    """A file or folder to write."""
    return Path(named(text))


def thread_count(text: str) -> int:
    """A number of threads that this machine can run."""
    value, most = positive(text), THREADS_PER_CORE * (os.cpu_count() or 1)
    if value > most:
        raise argparse.ArgumentTypeError(f"{text!r} must be at most {most} on this machine")
    return value


def _fraction(text: str) -> float:
    """The number that a text such as 0.03 or 8/255 stands for, -1 where it is none."""
    above, slash, below = text.partition("/")
    try:
        value = float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError, OverflowError):
        return -1.0
    return value if math.isfinite(value) else -1.0


def share(text: str) -> float:
    """A number in [0, 1], also written as a fraction: 8/255."""
    value = _fraction(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} must lie in [0, 1], such as 8/255 or 0.03")
    return value


def share_or_more(text: str) -> float:
    """A number of at least 0, also written as a fraction (L2 and L1 budgets may exceed 1)."""
    value = _fraction(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of at least 0, such as 8/255 or 0.5")
    return value


def add_budget(parser: argparse.ArgumentParser) -> None:
    """``--eps`` and ``--norm``."""
    parser.add_argument(
        "--eps",
        type=share_or_more,
        default="8/255",
        help="budget, in units of images in [0, 1]; a fraction or a decimal number",
    )
    parser.add_argument("--norm", default="linf", choices=["linf", "l2", "l1"], help="norm of the budget")


def check_budget(parser: Parser, given: argparse.Namespace) -> None:
    """Under Linf a budget above 1 is a mistake: usually a forgotten /255."""
    if given.norm == "linf" and given.eps > 1:
        parser.error(
            f"argument --eps: '{given.eps:g}' must lie in [0, 1], such as 8/255 or 0.03, under --norm linf"
        )


def budget(norm: str, eps: float) -> str:
    """A budget as people write it: ``8/255`` under Linf, the number under other norms."""
    return f"{round(255 * eps, 3):g}/255" if norm == "linf" else f"{eps:g}"


class _OneLine(logging.Formatter):
    """What is logged may hold names of a user's."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(super().format(record))


def start(threads: int | None) -> None:
    """Set up the process: log to stderr, keep freed memory, use the requested number of threads."""
    import torch

    from spikeguard.runtime.memory import keep_freed_pages
    from spikeguard.runtime.stop import interrupt_instead

    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("spikeguard: %(message)s"))
    log = logging.getLogger("spikeguard")
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    interrupt_instead()
    keep_freed_pages()
    if threads:
        torch.set_num_threads(threads)


def say(text: str = "", end: str = "\n") -> None:
    """Print on stdout, without what a terminal would obey: every verb prints by this."""
    print(printable(text), end=end)


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout. Columns wrap between words; a word is never cut or broken."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    cells = [[one_line(cell) for cell in row] for row in (header, *rows)]
    widths = column_widths(cells, console.width if console.is_terminal else 10**4)
    drawn = Table(title=Text(one_line(title)), title_justify="left")
    for number, (name, width) in enumerate(zip(cells[0], widths, strict=True)):
        drawn.add_column(Text(name), justify="right" if number else "left", width=width)
    for row in cells[1:]:
        drawn.add_row(*(Text(cell) for cell in row))
    console.width = max(console.width, sum(widths) + 3 * len(widths) + 1)
    with console.capture() as text:  # its own writing ends the process where a pipe is closed
        console.print(drawn)
    print(text.get(), end="")


def column_widths(cells: Sequence[Sequence[str]], room: int) -> list[int]:
    """Widths of the columns of a table in a terminal of ``room`` characters.

    The widest column shrinks first, and none below its longest word: the table is then wider than the room.
    """
    from rich.cells import cell_len

    columns = list(zip(*cells, strict=True))
    widths = [max(map(cell_len, column)) for column in columns]
    lowest = [
        max((cell_len(word) for cell in column for word in cell.split()), default=0) for column in columns
    ]
    over = sum(widths) + 3 * len(widths) + 1 - room
    while over > 0:
        loose = [k for k in range(len(widths)) if widths[k] > lowest[k]]
        if not loose:
            break
        widths[max(loose, key=lambda k: widths[k])] -= 1
        over -= 1
    return widths


def print_json(record: Mapping[str, object]) -> None:
    """Print a record on stdout."""
    print(json.dumps(plain(record), indent=1, allow_nan=False))


def print_flags(flags: Iterable[Flag]) -> None:
    """Print the flags of a record, and where each is explained."""
    for flag in flags:
        say(f"{flag.level}: {flag.message} (spikeguard explain {flag.id})")


Main = Callable[[list[str]], int]
"""A verb: from its arguments to the exit code."""
