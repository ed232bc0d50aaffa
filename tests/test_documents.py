"""What the documents say against the records it comes from."""

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from spikeguard.auditing.suite import STANDARD
from spikeguard.records.bench import BenchRecord
from spikeguard.records.files import read_json
from spikeguard.records.schema import AuditRecord
from spikeguard.records.studies import DemoRecord, StudyRecord
from spikeguard.report.reading import reading
from studies.embedded.page import page
from studies.embedded.picture import picture

ROOT = Path(__file__).parents[1]


def tool_named(name: str) -> ModuleType:
    if str(ROOT / "tools") not in sys.path:  # tools import each other as scripts do
        sys.path.append(str(ROOT / "tools"))
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    tool = importlib.util.module_from_spec(spec)
    sys.modules[name] = tool  # dataclasses of a tool look their module up there
    spec.loader.exec_module(tool)
    return tool


def test_the_page_of_the_bench_is_that_of_its_record():
    tool = tool_named("bench_page")
    assert tool.PAGE.read_text() == tool.page(BenchRecord.read(tool.RECORD))


def test_the_page_on_the_audit_is_that_of_its_record():
    tool = tool_named("audit_bars")
    assert tool.PAGE.read_text() == tool.page(tool.BarsRecord.read(tool.OUT))


def test_the_pages_on_defenses_are_those_of_their_records():
    tool = tool_named("defense_page")
    assert tool.PAGE.read_text() == tool.page()
    record, path = (
        StudyRecord.read(ROOT / "results" / "embedded.json"),
        ROOT / "docs" / "results" / "embedded.md",
    )
    assert path.read_text() == page(record)
    stored, drawn = path.with_suffix(".svg").read_text(), picture(record)
    assert re.findall(r"<text[^>]*>([^<]*)</text>", stored) == re.findall(r"<text[^>]*>([^<]*)</text>", drawn)
    markers = [
        [float(v) for pair in re.findall(r'<use [^>]*x="([-.\d]+)" y="([-.\d]+)"', text) for v in pair]
        for text in (stored, drawn)
    ]
    assert len(markers[0]) > 2 * len({(c.group, c.row) for c in record.cells.values()})
    assert markers[0] == pytest.approx(markers[1], abs=0.1)


def test_the_page_on_the_demos_seeds_is_that_of_its_record():
    tool = tool_named("demo_results_page")
    assert tool.PAGE.read_text() == tool.page(read_json(tool.RECORD))


def test_every_member_of_standard_but_the_controls_alone_breaks_a_sample_of_the_panel():
    tool, ids = tool_named("audit_panel"), frozenset(m.id for m in STANDARD)
    record = tool.PanelRecord.read(tool.OUT)
    alone = tool.earned(record.networks, ids)
    kept_for_masking = {"pgd40x2", "apgd50"}
    assert {member for member, places in alone.items() if places} | tool.CONTROLS | kept_for_masking == ids
    for row in record.networks.values():  # and together they break all that the whole suite broke
        broken = {tool.SAME.get(m, m): b for m, b in row.broken.items()}
        assert set().union(*broken.values()) == set().union(*(b for m, b in broken.items() if m in ids))


def test_the_bars_of_the_audit_hold_in_their_record():
    tool = tool_named("audit_bars")
    rows = tool.BarsRecord.read(tool.OUT).networks
    assert set(rows) == {"vanilla", "at", "tgo", "at-tgo"}
    for row in rows.values():
        assert row.audit.worst_case.value <= min(row.autoattack, row.sapgd100)
    assert rows["at"].pgd100 - rows["at"].sapgd100 >= 0.08
    assert rows["tgo"].seconds["audit_1000"] <= 15 * 60


def test_the_numbers_of_the_readme_are_those_of_its_record():
    tool = tool_named("readme_picture")
    record, rows = DemoRecord.read(ROOT / "results" / "demo.json"), read_json(tool.SEEDS)["rows"]
    text = (ROOT / "README.md").read_text()
    marks = tool.MARKS.search(text)
    assert marks[0] == marks[1] + tool.numbers(record, rows) + marks[2]
    ordered = sorted(row["worst_tgo"] for row in rows)
    shown = next(n for n in record.networks if n.role == "tgo").attacks[record.eps[0]].worst_case.value
    assert abs(100 * shown - ordered[(len(rows) - 1) // 2]) < 0.01, "not the median seed"


def made_up(vanilla: tuple[float, float], control: float, tgo: tuple[float, float]) -> DemoRecord:
    """A demo's record with these shares: (PGD-20 alone, worst case)."""
    record = DemoRecord.read(ROOT / "results" / "demo.json")
    shares = {"vanilla": vanilla, "control": (control, control), "nlif": (0.1, 0.1), "tgo": tgo}

    def with_shares(audit: AuditRecord, own: float, worst: float) -> AuditRecord:
        members = tuple(
            replace(m, alone=replace(m.alone, value=own)) if m.id == "pgd20" else m for m in audit.members
        )
        return replace(audit, members=members, worst_case=replace(audit.worst_case, value=worst))

    networks = tuple(
        replace(n, attacks={eps: with_shares(a, *shares[n.role]) for eps, a in n.attacks.items()})
        for n in record.networks
    )
    return replace(record, networks=networks)


def test_the_reading_calls_masking_what_is_masking_and_nothing_else():
    masked = " ".join(reading(made_up((0.30, 0.28), 0.28, (0.60, 0.29))))
    assert "29.0 points of TGO's apparent gain were masking" in masked
    assert "which the choice of 300 images alone could explain" in masked
    real = " ".join(reading(made_up((0.30, 0.20), 0.22, (0.50, 0.48))))
    assert "the gain is no masking" in real
    assert "26.0 points above the better of the two" in real
