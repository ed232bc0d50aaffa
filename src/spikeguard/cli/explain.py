"""``spikeguard explain``: the page of a flag."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from spikeguard.cli import common
from spikeguard.errors import unknown

LEVELS = {
    "error": "the robust accuracy of the audit means nothing",
    "warning": "the number stands; read it with this in mind",
    "info": "for your information",
}
WIDTH = 96


def parser() -> common.Parser:
    made = common.Parser(
        "explain", "What a flag of an audit means, why it matters, what to do. Without FLAG: all flags."
    )
    made.add_argument("flag", nargs="*", help="name of a flag, such as masking")
    return made


def run(arguments: list[str]) -> int:
    given = parser().read(arguments)
    from spikeguard.auditing.flags import KINDS
    from spikeguard.records.files import plain

    for name in given.flag:
        if name not in KINDS:
            raise unknown("flag", name, KINDS)
    if given.json:
        common.print_json({name: plain(KINDS[name]) for name in given.flag or KINDS})
    elif given.flag:
        common.say("\n\n".join(_page(name) for name in given.flag))
    else:
        common.say("\n".join(_listing([(kind.level, name, kind.says) for name, kind in KINDS.items()])))
        common.say("next: spikeguard explain FLAG")
    return 0


def _page(name: str) -> str:
    """The page of a flag as text."""
    from spikeguard.auditing.flags import KINDS

    kind = KINDS[name]
    parts = [f"{name} ({kind.level}: {LEVELS[kind.level]})", kind.says]
    parts += [f"Why it matters: {kind.why}", f"What to do: {kind.do}"]
    return "\n\n".join(textwrap.fill(part.replace("`", ""), WIDTH) for part in parts)


def _listing(kinds: Sequence[tuple[str, str, str]]) -> list[str]:
    """Three columns: level, name, what it says."""
    indent = 10 + max(len(name) for _, name, _ in kinds) + 2
    return [
        textwrap.fill(
            f"{level:<10}{name:<{indent - 10}}{says}", max(WIDTH, indent + 60), subsequent_indent=" " * indent
        )
        for level, name, says in kinds
    ]
