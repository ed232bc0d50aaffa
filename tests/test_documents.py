"""What the documents say against the records it comes from."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from spikeguard.study.frontier import grouped, lower_bound, margins_over_frontier, mean_of
from spikeguard.study.matrix import CONFIRMING, FRESH, TWIN, on_frontier
from spikeguard.study.pages import page
from spikeguard.study.picture import picture

from spikeguard.auditing.flags import KINDS
from spikeguard.auditing.suite import FULL, STANDARD
from spikeguard.defenses import DEFENSES
from spikeguard.gradients import ENSEMBLE
from spikeguard.records.files import read_json
from spikeguard.records.studies import DemoRecord
from spikeguard.report.reading import reading

ROOT = Path(__file__).parents[1]
FAMILIES = {10: "ten", 11: "eleven", 12: "twelve"}


def tool_named(name: str) -> ModuleType:
    if str(ROOT / "tools") not in sys.path:  # tools import each other as scripts do
        sys.path.append(str(ROOT / "tools"))
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def test_the_page_of_the_bench_is_that_of_its_record():
    assert (ROOT / "docs" / "bench.md").read_text() == tool_named("bench_page").page(
        read_json(ROOT / "results" / "bench.json")
    )


def test_the_page_on_the_audit_is_that_of_its_record():
    tool = tool_named("audit_bars")
    assert tool.PAGE.read_text() == tool.page(read_json(tool.OUT))


def test_the_pages_on_defenses_are_those_of_their_records():
    tool = tool_named("defense_page")
    assert tool.PAGE.read_text() == tool.page()
    record, path = read_json(ROOT / "results" / "embedded.json"), ROOT / "docs" / "results" / "embedded.md"
    assert path.read_text() == page(record)
    drawn, told = path.with_suffix(".svg").read_text(), picture(record)
    assert re.findall(r"<text[^>]*>([^<]*)</text>", drawn) == re.findall(r"<text[^>]*>([^<]*)</text>", told)
    markers = [
        [float(v) for pair in re.findall(r'<use [^>]*x="([-.\d]+)" y="([-.\d]+)"', text) for v in pair]
        for text in (drawn, told)
    ]
    assert len(markers[0]) > 2 * len({(c["group"], c["row"]) for c in record["cells"].values()})
    assert markers[0] == pytest.approx(markers[1], abs=0.1)


def test_what_the_readme_says_of_the_frontier_holds_in_the_record():
    record, text = (
        read_json(ROOT / "results" / "embedded.json"),
        " ".join((ROOT / "README.md").read_text().split()),
    )
    ways = len({(group, row) for group, row, _ in record["wanted"]})
    assert (
        f"of {ways} ways to train the embedded network, the most robust is adversarial training with RAT "
        "and TGO on neurons without leak" in text
    )
    assert record["most_robust"] == ["AT", "conversion's neurons + RAT + TGO"]
    row = [c for c in record["confirmed"].values() if [c["group"], c["row"]] == record["most_robust"]]
    assert {c["seed"] for c in row} == set(range(FRESH, FRESH + CONFIRMING)) == {100, 101, 102, 103, 104}
    over, bound = margins_over_frontier(row, record["confirmed"]), lower_bound(row, record["confirmed"])
    assert bound > 0
    assert (
        f"by {100 * sum(over) / 5:.1f} points on average, with a lower bound of {100 * bound:.1f} (the same "
        "images;" in text
    )
    assert f"{100 * mean_of(row, 'worst_case'):.1f} % are left)" in text
    name = "at-conversion-s-neurons---rat---tgo-0"
    scored = {name: told["worst_case"]["accuracy"] for name, told in record["test"].items()}
    frontier = max(accuracy for name, accuracy in scored.items() if on_frontier(record["cells"][name]))
    assert (
        f"leaves {100 * scored[name]:.1f} % of it and {100 * frontier:.1f} % of the best of that frontier"
        in text
    )
    assert max(scored, key=lambda n: scored[n]) == name, "whoever does better is named"
    long, short = (100 * record[part][name]["worst_case"]["accuracy"] for part in ("looked_at", "cells"))
    assert (
        f"`full`, the longest there is, leaves {long:.1f} % of the 100 validation images where quick left "
        f"{short:.1f} %" in text
    )
    rows = grouped(record["cells"].values())
    ours, yardstick, plain = (
        rows["AT", name] for name in ("conversion's neurons + RAT + TGO", f"{TWIN} + RAT", "none")
    )
    assert {len(r) for r in (ours, yardstick, plain)} == {3}
    best, twin, at = (100 * mean_of(r, "worst_case") for r in (ours, yardstick, plain))
    assert f"leaves {best:.1f} % of 100 validation images, on average over three seeds" in text
    assert (
        f"is left with {twin:.1f} %, which so few images do not tell apart; plain spiking AT with {at:.1f} %"
        in text
    )


def test_every_member_of_standard_but_the_controls_alone_breaks_a_sample_of_the_panel():
    tool, names = tool_named("audit_panel"), frozenset(m.name for m in STANDARD)
    record = read_json(tool.OUT)
    alone = tool.earned(record, names)
    kept_for_masking = {"PGD-40 x 2", "APGD-50"}
    assert {name for name, places in alone.items() if places} | tool.CONTROLS | kept_for_masking == names
    for row in record["networks"].values():  # and together they break all that the whole suite broke
        broke = {tool.SAME.get(m, m): b for m, b in row["breaks"].items()}
        assert set().union(*broke.values()) == set().union(*(b for m, b in broke.items() if m in names))


def test_the_bars_of_the_audit_hold_in_their_record():
    rows = read_json(ROOT / "results" / "audit-bars.json")["networks"]
    assert set(rows) == {"vanilla", "at", "tgo", "at-tgo"}
    for row in rows.values():
        assert row["audit"]["worst_case"]["accuracy"] <= min(
            row["torchattacks AutoAttack"], row["SA-PGD-100 ASSG"]
        )
    assert rows["at"]["PGD-100, training surrogate"] - rows["at"]["SA-PGD-100 ASSG"] >= 0.08
    assert rows["tgo"]["audit of 1000 images, seconds"] <= 15 * 60


def test_what_the_readme_counts_and_says_of_the_standard_audit_is_so():
    text = " ".join((ROOT / "README.md").read_text().split())
    whole = read_json(ROOT / "results" / "audit-bars.json")["networks"]["tgo"]["audit of 1000 images"][
        "worst_case"
    ]
    low, high = (f"{100 * v:.1f}" for v in whole["interval"])
    assert f"leaves {100 * whole['accuracy']:.1f} % ({low} to {high}) of TGO" in text
    alone = tool_named("audit_panel").earned(
        read_json(ROOT / "results" / "audit-panel.json"), frozenset(m.name for m in STANDARD)
    )
    assert (
        f"{sum(bool(places) for places in alone.values())} of the {len(STANDARD)} members of `standard` "
        "each break" in text
    )
    assert f"up to {len(FULL)} members of {FAMILIES[len({m.family for m in FULL})]} families" in text
    assert f"[{len(KINDS)} flags](docs/flags/README.md)" in text
    assert f"| defenses | [{len(DEFENSES) - 1} and a yardstick, one table]" in text
    assert "the ensemble of 19," in text
    assert len(ENSEMBLE) == 19


def test_the_numbers_of_the_readme_are_those_of_its_record():
    tool = tool_named("readme_picture")
    record = DemoRecord.read(ROOT / "results" / "demo.json")
    text = (ROOT / "README.md").read_text()
    assert (
        tool.MARKS.search(text)[0]
        == tool.MARKS.search(text)[1] + tool.numbers(record) + tool.MARKS.search(text)[2]
    )


def test_what_the_readme_says_of_five_seeds_holds_in_the_record():
    rows = read_json(ROOT / "results" / "demo-seeds.json")["rows"]
    over, control = (
        [f"{f(row[key] for row in rows):.1f}" for f in (min, max)]
        for key in ("gain_over_vanilla", "gain_over_control")
    )
    told = f"{over[0]} to {over[1]} points above vanilla and {control[0]} to {control[1]} above the control"
    assert len(rows) == 5
    assert told in " ".join((ROOT / "README.md").read_text().split())


def test_the_diary_tells_every_seed_as_recorded():
    diary = (ROOT / "LAB.md").read_text()
    for row in read_json(ROOT / "results" / "demo-seeds.json")["rows"]:
        told = next(line for line in diary.splitlines() if line.startswith(f"| {row['seed']} |"))
        cells = [float(c.strip(" *")) for c in told.strip("|").split("|")]
        names = (
            "seed",
            "worst_vanilla",
            "worst_control",
            "worst_tgo",
            "gain_over_vanilla",
            "gain_over_control",
            "clean_lost",
            "fewer_neighbors",
        )
        for cell, name in zip(cells, names, strict=True):
            assert abs(cell - row[name]) <= (0.5 if name == "fewer_neighbors" else 0.051), (row["seed"], name)


def made_up(vanilla: tuple[float, float], control: float, tgo: tuple[float, float]) -> dict:
    """A demo's record with these shares: (PGD-20 alone, worst case)."""

    def network(role, own, worst):
        told = {"alone": {"PGD-20": {"accuracy": own}}, "worst_case": {"accuracy": worst}}
        return {
            "role": role,
            "factor": 1.5,
            "seconds": 10.0,
            "clean": {"accuracy": 0.9},
            "neighbors": {"mean": 0.1},
            "attacks": {"8/255": told, "25/255": told},
        }

    networks = [network("vanilla", *vanilla), network("control", control, control), network("tgo", *tgo)]
    return {"networks": networks, "eps": ["8/255", "25/255"], "images": 300, "delta": 0.2}


def test_the_reading_calls_masking_what_is_masking_and_nothing_else():
    masked = " ".join(reading(made_up((0.30, 0.28), 0.28, (0.60, 0.29))))
    assert "29.0 points of TGO's apparent gain were masking" in masked
    assert "which the choice of 300 images alone could explain" in masked
    real = " ".join(reading(made_up((0.30, 0.20), 0.22, (0.50, 0.48))))
    assert "the gain is no masking" in real
    assert "26.0 points above the control" in real
