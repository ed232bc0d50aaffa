"""``spikeguard explain``: the page of a flag, or of a defense, attack, network, surrogate or data set."""

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
        "explain",
        "What a flag of an audit means, why it matters, what to do. Without FLAG: all flags.",
        epilog="A defense, attack, network, surrogate or data set has a page, too: spikeguard explain tgo",
    )
    made.add_argument("flag", nargs="*", help="name of a flag, such as masking")
    return made


def run(arguments: list[str]) -> int:
    made = parser()
    given = made.read(arguments)
    from spikeguard.auditing.flags import KINDS
    from spikeguard.records.files import plain

    pages = [_page(name) for name in given.flag]
    if given.json:
        if others := [name for name in given.flag if name not in KINDS]:
            made.error(f"--json is for flags, {others[0]!r} is none")
        common.print_json({name: plain(KINDS[name]) for name in given.flag or KINDS})
    elif given.flag:
        common.say("\n\n".join(pages))
    else:
        common.say("\n".join(_listing([(kind.level, name, kind.says) for name, kind in KINDS.items()])))
        common.say("next: spikeguard explain FLAG")
    return 0


def _page(name: str) -> str:
    """The page of a flag, or of something else of that name, as text."""
    from spikeguard.auditing.flags import KINDS

    if name not in KINDS:
        return _page_of_thing(name)
    kind = KINDS[name]
    parts = [f"{name} ({kind.level}: {LEVELS[kind.level]})", kind.says]
    parts += [f"Why it matters: {kind.why}", f"What to do: {kind.do}"]
    return "\n\n".join(textwrap.fill(part.replace("`", ""), WIDTH) for part in parts)


def _page_of_thing(name: str) -> str:
    """What it is, what it does, its settings, and who registered it."""
    from spikeguard.auditing.flags import KINDS
    from spikeguard.training.register import REGISTRIES, documented

    for registry in REGISTRIES:
        if name in registry:
            source = registry.sources.get(name)
            of = f", of {source}" if source else ""
            text, settings = documented(registry[name])
            lines = [f"{name} ({registry.kind}{of})", *(textwrap.fill(p, WIDTH) for p in text)]
            return "\n\n".join([*lines, *(["\n".join(f"  {s}" for s in settings)] if settings else [])])
    raise unknown("flag", name, KINDS, more="; or a defense, attack, network, surrogate or data set")


def _listing(kinds: Sequence[tuple[str, str, str]]) -> list[str]:
    """Three columns: level, name, what it says."""
    indent = 10 + max(len(name) for _, name, _ in kinds) + 2
    return [
        textwrap.fill(
            f"{level:<10}{name:<{indent - 10}}{says}", max(WIDTH, indent + 60), subsequent_indent=" " * indent
        )
        for level, name, says in kinds
    ]
