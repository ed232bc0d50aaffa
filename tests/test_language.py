"""The language of code and documents: plain American English, the field's terms, links that resolve.

Every test lists all offenders at once, a line each: ``path:line: 'word' in text``.
"""

import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from spikeguard.defenses import DEFENSES

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
WIDTH = 100

REFUSED = re.compile(
    r"\b(?:told|tells?|asked|asks|by lot|likewise|still|(?<!straight[- ])through|look(?:s|ed|ing)? "
    r"(?:at|away)|alike|at rest|posed|heard|silent(?! neurons?\b))\b",
    re.I,
)
BRITISH = re.compile(
    r"\b(?:\w*behaviour|\w*colour|\w*neighbour|\w*favour|\w*honour|\w*defence|centre|fibre|grey|\w*analyse"
    r"|catalogue|judgement|labelled|labelling|modelled|modelling|cancelled|licence)\w*\b"
    r"|\b\w+(?:isation|ise|ised|iser|isers|ises|ising)\b",
    re.I,
)
AMERICAN = re.compile(  # words that end like British ones
    r"(?:\w*(?:wise|noise|precise|concise|raise|praise|rise|exercise|promise|compromise|advise|revise|devise|"
    r"supervise|surprise|comprise|disguise|premise|expertise|improvise|advertise|otherwise|demise|poise|guise)"
    r"|\w*(?:nois|rais|ris|exercis|promis|compromis|advis|revis|devis|supervis|surpris|compris|disguis|premis)"
    r"(?:ed|er|ers|es|ing))",
    re.I,
)
ALLOWED = {
    ("src/spikeguard/deprecated.py", "still"): "the name of an estimator in version 0.1",
    ("src/spikeguard/deprecated.py", "through"): "the name of an estimator in version 0.1",
    ("src/spikeguard/deprecated.py", "InputQuantisation"): "a name of version 0.1",
    ("src/spikeguard/records/member_names.py", "by lot"): "the name of a member in records of schema 1",
    ("src/spikeguard/records/member_names.py", "through"): "the name of a member in records of schema 1",
    ("src/spikeguard/records/schema1.py", "asked"): "a key in records of schema 1",
    ("src/spikeguard/records/schema1.py", "silent"): "a key in records of schema 1",
    ("src/spikeguard/training/settings.py", "input_quantisation"): "a name of version 0.1",
    ("src/spikeguard/training/settings.py", "quantisation"): "a name of version 0.1",
    ("studies/embedded/matrix.py", "by lot"): "names of rows in stored records; draws depend on them",
    ("docs/results/embedded.md", "by lot"): "names of rows in stored records",
    ("CHANGELOG.md", "still"): "the table of old names",
    ("CHANGELOG.md", "through"): "the table of old names",
    ("CHANGELOG.md", "InputQuantisation"): "the table of old names",
    ("CHANGELOG.md", "defences"): "the old name of a table in recipes",
    ("CHANGELOG.md", "neighbours"): "the table of old names",
    ("CHANGELOG.md", "silent"): "the table of old names",
}
"""(path, word): why it may stand there. A string that enters a key of random numbers must not change."""

INVISIBLE = re.compile(
    r"\b(?:STUDY|MEASURING|FIELD_GUIDE|ADAPTERS|HOUSE|STYLE|ARCHITECTURE)\b(?:\.md)?"
    r"|\bfirst design\b|\bfield guide\b|\bthe design's\b|\bissue #?\d+|\bthe brief\b"
)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
FILE = re.compile(r"`([\w./]+\.(?:py|cpp))`")
NUMBER = re.compile(r"(?<![\w./-])\d[\d.,]*(?:/\d+)?")


def tracked(*patterns: str) -> list[Path]:
    """Files of the repository, without what git ignores."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in listed.splitlines() if (path := ROOT / name).exists()]


def documents() -> list[Path]:
    return tracked("*.md", "docs/**/*.md")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def words_of(identifier: str) -> str:
    """``at_rest`` and ``InputQuantisation`` as words."""
    parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", identifier)
    return " ".join([*parts, *([identifier] if len(parts) > 1 and "_" not in identifier else [])])


def pieces(path: Path, names: bool = True) -> Iterator[tuple[int, str]]:
    """Line number and text of everything a reader reads: of Python identifiers, strings and comments."""
    text = path.read_text(encoding="utf-8")
    if path.suffix not in (".py", ".pyi"):
        yield from enumerate(text.splitlines(), 1)
        return
    kinds = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in kinds:
            yield from enumerate(token.string.splitlines(), token.start[0])
        elif names and token.type == tokenize.NAME:
            yield token.start[0], words_of(token.string)


def offenders(path: Path) -> list[str]:
    found = []
    for line, text in pieces(path):
        british = [m for m in BRITISH.finditer(text) if not AMERICAN.fullmatch(m[0])]
        for match in [*REFUSED.finditer(text), *british]:
            if match[0].lower() == "silent" and "neuron" in text:  # one that does not spike
                continue
            if (name_of(path), match[0]) not in ALLOWED:
                found.append(f"{name_of(path)}:{line}: {match[0]!r} in {text.strip()[:90]}")
    return list(dict.fromkeys(found))


def prose(text: str) -> str:
    """A document without tables, code and pictures."""
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    return "\n".join(line for line in text.splitlines() if not line.startswith(("|", "    ", "!", "#")))


def test_the_package_speaks_plain_american_english() -> None:
    files = [p for p in tracked("src", "studies") if p.suffix in (".py", ".pyi", ".html", ".cpp")]
    assert len(files) > 50
    found = [line for path in files for line in offenders(path)]
    assert not found, "\n" + "\n".join(found)


def test_the_documents_speak_plain_american_english() -> None:
    files = [p for p in documents() if p.name != "LAB.md"]  # a diary keeps its voice
    assert len(files) > 20
    found = [line for path in files for line in offenders(path)]
    assert not found, "\n" + "\n".join(found)


def test_no_file_cites_a_document_that_a_reader_cannot_see() -> None:
    files = [p for p in tracked() if p.suffix in (".py", ".md", ".html", ".toml", ".cpp", ".pyi", ".yml", "")]
    found = [
        f"{name_of(path)}:{line}: {match[0]!r} in {text.strip()[:90]}"
        for path in files
        if path != Path(__file__).resolve()
        for line, text in pieces(path, names=False)
        for match in INVISIBLE.finditer(text)
    ]
    assert not found, "\n" + "\n".join(found)


def test_lines_of_documents_fit_a_narrow_window() -> None:
    found = [
        f"{name_of(path)}:{number}: {len(line)} characters"
        for path in documents()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > WIDTH and not line.lstrip().startswith("|") and "](" not in line
    ]
    assert not found, "\n" + "\n".join(found)


def test_links_between_documents_resolve() -> None:
    found = [
        f"{name_of(path)}: {link}"
        for path in documents()
        for link in LINK.findall(path.read_text())
        if "://" not in link and not (path.parent / link).exists()
    ]
    assert not found, "\n" + "\n".join(found)


def test_documents_name_files_that_exist() -> None:
    folders = (ROOT, ROOT / "src" / "spikeguard", *(ROOT / "studies").iterdir())
    found = [
        f"{name_of(path)}:{number}: {file}"
        for path in documents()
        if path.name not in ("LAB.md", "CHANGELOG.md")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for file in FILE.findall(line)
        if file != "utils.py" and not any((folder / file).exists() for folder in folders)
    ]
    assert not found, "\n" + "\n".join(found)


def fields_in_table(document: str, heading: str) -> set[str]:
    """Names in the first column of the table under a heading."""
    section = (ROOT / document).read_text().partition(heading)[2].partition("\n#")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def test_both_tables_of_a_members_row_name_every_field() -> None:
    long = fields_in_table("docs/reference/records.md", "## A member's row")
    assert long == fields_in_table("docs/architecture.md", "## A member's row")
    assert {"attempted", "broken", "first_by", "only_this_family", "alone"} < long
    schema = ROOT / "src" / "spikeguard" / "records" / "schema.py"
    if schema.exists():
        row = schema.read_text().partition("class MemberRow:")[2].partition("\nclass ")[0]
        assert long == set(re.findall(r"^    (\w+): ", row, re.M))


def test_the_readme_is_one_screen_with_its_two_commands_on_top() -> None:
    lines = README.read_text().splitlines()
    assert len(lines) <= 70
    first = "\n".join(lines[:15])
    assert "python3 dev.py demo" in first
    assert "python3 dev.py test" in first


def test_no_sentence_of_the_readme_is_a_list_of_numbers() -> None:
    sentences = re.split(r"(?<=[.:;])\s+", prose(README.read_text()))
    assert len(sentences) > 10
    assert not [s for s in sentences if len(NUMBER.findall(s)) >= 4]


def test_the_readme_counts_the_defenses() -> None:
    assert f"[{len(DEFENSES) - 1} defenses, one table]" in README.read_text()  # one is a yardstick


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("what survives is told", True),
        ("look at this", True),
        ("a silent surrogate", True),
        ("a silent neuron", False),
        ("at rest", True),
        ("normalised", True),
        ("the noise is raised otherwise", False),
        ("a neighbour", True),
        ("more precise promises", False),
        ("instill throughput", False),
        ("straight-through", False),
        ("through another surrogate", True),
    ],
)
def test_the_word_list_refuses_what_it_should(text: str, refused: bool) -> None:
    british = [m for m in BRITISH.finditer(text) if not AMERICAN.fullmatch(m[0])]
    assert bool(REFUSED.search(text) or british) == refused


def test_identifiers_are_read_as_words() -> None:
    assert REFUSED.search(words_of("at_rest"))
    assert REFUSED.search(words_of("lookAt"))
    assert BRITISH.search(words_of("InputQuantisation"))
