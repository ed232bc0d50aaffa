"""Write a page for every flag of the audit into docs/flags, from ``spikeguard.auditing.flags``.

python tools/flag_pages.py
"""

from pathlib import Path

from spikeguard.auditing.flags import KINDS, Kind

FOLDER = Path(__file__).parents[1] / "docs" / "flags"
LEVELS = {
    "error": "The audit's number is not reliable; `spikeguard audit` ends with exit code 1.",
    "warning": "The number stands; read it with this in mind.",
    "info": "For your information.",
}


def page(name: str, kind: Kind) -> str:
    """The text of one page."""
    return (
        f"# {name}\n\nLevel: **{kind.level}**. {LEVELS[kind.level]}\n\n{kind.says}\n\n## Why it "
        f"matters\n\n{kind.why}\n\n## What to do\n\n{kind.do}\n"
    )


def index() -> str:
    """The list of all flags."""
    rows = "\n".join(f"| [{name}]({name}.md) | {kind.level} | {kind.says} |" for name, kind in KINDS.items())
    return (
        "# Flags of an audit\n\nWhat an audit says about its own reliability.\n\n| flag | level | what "
        f"it says |\n|---|---|---|\n{rows}\n"
    )


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, kind in KINDS.items():
        (FOLDER / f"{name}.md").write_text(page(name, kind))
    (FOLDER / "README.md").write_text(index())


if __name__ == "__main__":
    main()
