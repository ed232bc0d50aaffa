"""Records: every type reads what it writes, schema 1 is read, what does not fit is one line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from narrow import as_a, present

from spikeguard.auditing.suite import FULL
from spikeguard.errors import UserError
from spikeguard.records.bench import BenchRecord
from spikeguard.records.files import compact, read_json, write_json
from spikeguard.records.member_names import IDS, OLD_NAMES, id_of
from spikeguard.records.read import KINDS, read_record
from spikeguard.records.schema import AttackRecord, AuditRecord
from spikeguard.records.studies import DemoRecord, StudyRecord
from spikeguard.records.training import Measured, TrainingRecord

OLD = Path(__file__).parents[1] / "data" / "schema1"
TYPES = {
    "audit": AuditRecord,
    "attack": AttackRecord,
    "training": TrainingRecord,
    "demo": DemoRecord,
    "study": StudyRecord,
    "bench": BenchRecord,
}


@pytest.mark.parametrize("kind", TYPES)
def test_a_record_of_schema_1_is_read_and_comes_back_as_schema_2(kind: str, tmp_path: Path) -> None:
    old = read_json(OLD / f"{kind}.json")
    assert old["schema"] == 1
    record = read_record(OLD / f"{kind}.json")
    assert type(record) is TYPES[kind] is KINDS[kind]
    record.write(tmp_path / "new.json")
    assert read_json(tmp_path / "new.json")["schema"] == 2
    assert read_record(tmp_path / "new.json") == record


def test_numbers_of_an_old_audit_stay_the_same() -> None:
    old, new = read_json(OLD / "audit.json"), AuditRecord.read(OLD / "audit.json")
    assert new.worst_case.value == old["worst_case"]["accuracy"]
    assert [new.worst_case.low, new.worst_case.high] == old["worst_case"]["interval"]
    assert list(new.first_by) == old["first"]
    assert list(new.right) == old["right"]
    assert present(new.masking).pgd20 == old["masking"]["PGD-20"]
    assert present(new.controls).zero_budget.left == old["controls"]["nothing"]["left"]
    assert [m.attempted for m in new.members] == [m["met"] for m in old["members"]]
    assert [OLD_NAMES[m.id] for m in new.members] == [m["name"] for m in old["members"]]
    assert new.alone["pgd20"].value == old["alone"]["PGD-20"]["accuracy"]


def test_numbers_of_an_old_bench_stay_the_same() -> None:
    old, new = read_json(OLD / "bench.json"), BenchRecord.read(OLD / "bench.json")
    step, attack = old["tasks"]["training step, vgg11"], old["tasks"]["PGD-20, small network, trained"]
    timed = new.timed["training step, vgg11"]
    assert {k: list(v) for k, v in timed.seconds.items()} == step["seconds"]
    assert timed.over_best == step["over_best"]
    assert timed.parts == step["parts"]
    dropping = present(new.timed["PGD-20, small network, trained"].dropping)
    assert (dropping.faster, dropping.eps) == (attack["dropping_faster"], attack["eps"])
    assert present(new.memory).bytes == old["tasks"]["peak memory of a training step"]["bytes"]
    assert present(new.growth).large.bytes == old["tasks"]["growth"]["large"]["bytes"]
    assert present(new.growth).curves["side"].power == old["tasks"]["growth"]["curves"]["side"]["power"]


def test_every_member_of_the_suite_keeps_the_key_of_its_random_numbers() -> None:
    new = {
        "block400",
        "block1000-6000",
        "block10000",
        "pgd20-learned-blend",
        "pgd20-activity",
    }
    assert {m.id for m in FULL} - set(OLD_NAMES) == new
    assert {m.id: m.key for m in FULL} == {m.id: OLD_NAMES.get(m.id, m.id) for m in FULL}
    assert len(IDS) == len(OLD_NAMES)
    assert id_of("PGD-20 by lot") == "pgd20-random-surrogate"
    assert id_of("mine") == "mine"


@pytest.mark.parametrize(
    "measured",
    [0.25, 1, True, {"body.stages.0.fire": 0.25, "body.stages.1.fire": 0.5}],
    ids=["number", "whole", "yes", "layers"],
)
def test_what_a_defense_measures_is_a_number_or_yes_or_a_number_for_each_layer(measured: Measured) -> None:
    values = TrainingRecord.read(OLD / "training.json").to_json()
    as_a(list, values["epochs"])[0]["measured"] = {"near_threshold": measured}
    record = TrainingRecord.from_json(values)
    assert record.epochs[0].measured == {"near_threshold": measured}
    assert type(record.epochs[0].measured["near_threshold"]) is not int
    assert TrainingRecord.from_json(record.to_json()) == record
    beside = {k: v for k, v in as_a(list, values["epochs"])[0].items() if k != "measured"}
    old = {**values, "schema": 1, "epochs": [{**beside, "near_threshold": measured}]}
    assert TrainingRecord.from_json(old).epochs[0] == record.epochs[0]


def test_the_accuracy_of_a_network_that_a_defense_changed_at_the_end_is_read() -> None:
    old = {**read_json(OLD / "training.json"), "kept": {"validation_accuracy": 0.75}}
    record = TrainingRecord.from_json(old)
    assert record.kept_accuracy == record.validation_accuracy == 0.75
    assert TrainingRecord.from_json(record.to_json()) == record


def test_what_a_defense_measures_is_no_text() -> None:
    values = TrainingRecord.read(OLD / "training.json").to_json()
    as_a(list, values["epochs"])[0]["measured"] = {"share": "high"}
    with pytest.raises(UserError, match=r"measured.share = 'high' must be a number"):
        TrainingRecord.from_json(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, "unknown field 'extra'"),
        ({"seed": "one"}, "seed = 'one' must be a whole number"),
        ({"kind": "poem"}, "unknown kind 'poem'"),
        ({"right": "01x"}, "must be a string of 0 and 1"),
        ({"first_by": 3}, "must be a list"),
        ({"verdict": None}, "verdict = None must be text"),
        ({"schema": 3}, "reads up to 2"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    values = {**AuditRecord.read(OLD / "audit.json").to_json(), **change}
    (tmp_path / "a.json").write_text(json.dumps(values))
    with pytest.raises(UserError) as error:
        read_record(tmp_path / "a.json")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    values = AuditRecord.read(OLD / "audit.json").to_json()
    del values["suite"]
    with pytest.raises(UserError, match="field 'suite' is missing"):
        AuditRecord.from_json(values)


def test_outcomes_are_a_string_or_a_list_and_lists_take_one_line(tmp_path: Path) -> None:
    record = AuditRecord.read(OLD / "audit.json")
    assert set(str(record.to_json()["right"])) <= {"0", "1"}
    shares = replace(record, right=tuple(0.5 for _ in record.right))
    assert shares.to_json()["right"] == [0.5] * len(record.right)
    assert AuditRecord.from_json(shares.to_json()) == shares
    write_json(tmp_path / "a.json", {"long": list(range(200)), "rows": [[k] * 30 for k in range(30)]})
    lines = (tmp_path / "a.json").read_text().splitlines()
    assert len(lines) == 35
    assert json.loads("\n".join(lines))["long"] == list(range(200))
    assert compact({"a": 1}) == '{"a": 1}'
