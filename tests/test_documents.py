"""What the documents say against the records it comes from."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import FAKES, HONEST
from narrow import present
from torch import Tensor

from spikeguard.auditing.member import LOCAL
from spikeguard.auditing.suite import STANDARD, VERSION
from spikeguard.records.bench import BenchRecord
from spikeguard.records.files import read_json
from spikeguard.records.schema import AuditRecord
from spikeguard.records.studies import DemoRecord, StudyRecord
from spikeguard.report.reading import reading
from spikeguard.reproduce.paper import paper
from studies.embedded.page import page
from studies.embedded.picture import picture

ROOT = Path(__file__).parents[1]


def test_the_page_of_the_bench_is_that_of_its_record() -> None:
    import bench_page as tool

    assert tool.PAGE.read_text() == tool.page(BenchRecord.read(tool.RECORD))


def test_the_page_on_the_audit_is_that_of_its_record() -> None:
    import audit_bars as tool

    assert tool.PAGE.read_text() == tool.page(tool.BarsRecord.read(tool.OUT))


def test_the_pages_on_defenses_are_those_of_their_records() -> None:
    import defense_page as tool

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


def test_the_page_on_the_demos_seeds_is_that_of_its_record() -> None:
    import demo_results_page as tool

    assert tool.PAGE.read_text() == tool.page(read_json(tool.RECORD))


def test_the_page_on_the_papers_method_is_that_of_its_records() -> None:
    import method_page as tool

    study, seeds = StudyRecord.read(tool.STUDY), read_json(tool.SEEDS)
    assert tool.PAGE.read_text() == tool.page(study, seeds, paper())
    changed = {**seeds, "rows": [{**row, "worst_tgo": row["worst_tgo"] + 50} for row in seeds["rows"]]}
    assert tool.PAGE.read_text() != tool.page(study, changed, paper())


def test_standard_breaks_all_that_the_panel_breaks_and_seldom_works_for_nothing() -> None:
    import audit_panel as tool

    record = tool.PanelRecord.read(tool.OUT)
    ids = record.standard
    assert sum(tool.idle(record).values()) <= 0.2
    for row in record.networks.values():  # and together they break all that the whole suite broke
        broken = record.broken(row)
        assert set().union(*broken.values()) == set().union(*(b for m, b in broken.items() if m in ids))


def test_in_the_panel_a_warm_member_starts_at_the_best_point_that_broke_nothing() -> None:
    import audit_panel as tool

    def model(x: Tensor) -> Tensor:
        return torch.cat([torch.full_like(x, 0.5), x], 1)

    near, y = tool.Near(torch.zeros(3, 1)), torch.zeros(3, dtype=torch.long)
    near.note(model, torch.tensor([[0.3], [0.2], [0.9]]), y, torch.tensor([False, False, True]))
    near.note(model, torch.tensor([[0.1], [0.4], [0.1]]), y, torch.tensor([False, False, False]))
    assert near.x.flatten().tolist() == pytest.approx([0.3, 0.4, 0.1])


def test_the_networks_of_the_panel_exist() -> None:
    import audit_panel as tool

    assert set(tool.FOREIGN) <= set(FAKES)
    assert set(tool.HONESTLY) <= set(HONEST)


def test_a_panel_of_the_present_suite_reads_its_members_by_their_own_names() -> None:
    import audit_panel as tool

    row = tool.PanelRow(2, {"sapgd100-assg-atan0.435": (0,), "sapgd100x3-assg-atan0.435": (1,)})
    record = tool.PanelRecord.read(tool.OUT)
    old, new = replace(record, suite="suite-v1"), replace(record, suite=VERSION)
    assert old.broken(row) == {"sapgd100x3-assg-atan0.435": frozenset({0, 1})}
    assert set(new.broken(row)) == set(row.broken)
    local = next(m.id for m in STANDARD if m.family == LOCAL)
    assert replace(new, suite="suite-v3").id_of_today("block1000") == local


def test_the_bars_of_the_audit_hold_in_their_record() -> None:
    import audit_bars as tool

    rows = tool.BarsRecord.read(tool.OUT).networks
    assert set(rows) == {"vanilla", "at", "tgo", "at-tgo"}
    for row in rows.values():
        assert present(row.audit).worst_case.value <= min(present(row.autoattack), present(row.sapgd100))
    assert present(rows["at"].pgd100) - present(rows["at"].sapgd100) >= 0.08
    assert rows["tgo"].seconds.get("audit_1000", 0.0) <= 15 * 60


def test_the_numbers_of_the_readme_are_those_of_its_record() -> None:
    import readme_picture as tool

    record, rows = DemoRecord.read(ROOT / "results" / "demo.json"), read_json(tool.SEEDS)["rows"]
    text = (ROOT / "README.md").read_text()
    marked = present(tool.MARKS.search(text))
    assert marked[0] == marked[1] + tool.numbers(record, rows) + marked[2]
    ordered = sorted(row["worst_tgo"] for row in rows)
    shown = next(n for n in record.networks if n.role == "tgo").attacks[record.eps[0]].worst_case.value
    assert abs(100 * shown - ordered[(len(rows) - 1) // 2]) < 0.01, "not the median seed"


def made_up(vanilla: tuple[float, float], control: float, tgo: tuple[float, float]) -> DemoRecord:
    """A demo's record with these shares: (PGD-20 alone, worst case)."""
    record = DemoRecord.read(ROOT / "results" / "demo.json")
    shares = {"vanilla": vanilla, "control": (control, control), "nlif": (0.1, 0.1), "tgo": tgo}

    def with_shares(audit: AuditRecord, own: float, worst: float) -> AuditRecord:
        members = tuple(
            replace(m, alone=replace(present(m.alone), value=own)) if m.id == "pgd20" else m
            for m in audit.members
        )
        return replace(audit, members=members, worst_case=replace(audit.worst_case, value=worst))

    networks = tuple(
        replace(n, attacks={eps: with_shares(a, *shares[n.role]) for eps, a in n.attacks.items()})
        for n in record.networks
    )
    return replace(record, networks=networks)


def test_the_reading_calls_masking_what_is_masking_and_nothing_else() -> None:
    masked = " ".join(reading(made_up((0.30, 0.28), 0.28, (0.60, 0.29))))
    assert "29.0 points of TGO's apparent gain were masking" in masked
    assert "which the choice of 300 images alone could explain" in masked
    real = " ".join(reading(made_up((0.30, 0.20), 0.22, (0.50, 0.48))))
    assert "the gain is no masking" in real
    assert "26.0 points above the better of the two" in real
