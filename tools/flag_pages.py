"""Pages of the audit's flags in docs/flags, from ``spikeguard.auditing.flags``.

python tools/flag_pages.py
"""

import textwrap
from pathlib import Path

from spikeguard.auditing.flags import KINDS, Kind
from spikeguard.auditing.literature import LITERATURE

FOLDER = Path(__file__).parents[1] / "docs" / "flags"
LEVELS = {
    "error": "The audit's number is not reliable; `spikeguard audit` ends with exit code 1.",
    "warning": "The number stands; read it with this in mind.",
    "info": "For your information.",
}


def page(name: str, kind: Kind) -> str:
    """The text of one page."""
    sources = "\n".join(_wrapped(text, "- ", "  ") for text in LITERATURE[name])
    parts = [
        f"# {name}",
        f"Level: **{kind.level}**. {LEVELS[kind.level]}",
        _wrapped(kind.says),
        "## Why it matters",
        _wrapped(kind.why),
        "## What to do",
        _wrapped(kind.do),
        "## Literature",
        sources,
    ]
    return "\n\n".join(parts) + "\n"


def _wrapped(text: str, first: str = "", rest: str = "") -> str:
    return textwrap.fill(
        text, 98, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False, break_long_words=False
    )


def index() -> str:
    """The list of all flags."""
    rows = "\n".join(f"| [{name}]({name}.md) | {kind.level} | {kind.says} |" for name, kind in KINDS.items())
    return (
        "# Flags of an audit\n\nWhat an audit found about its own reliability. A flag of level error makes "
        'the verdict\n"not reliable". Each page says why a flag matters, what to do, and where it comes '
        f"from.\n\n| flag | level | what it says |\n|---|---|---|\n{rows}\n"
    )


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, kind in KINDS.items():
        (FOLDER / f"{name}.md").write_text(page(name, kind))
    (FOLDER / "README.md").write_text(index())


if __name__ == "__main__":
    main()
