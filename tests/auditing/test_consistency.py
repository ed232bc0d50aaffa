"""What a record says of itself is computed again: every edit of a number is found without running a model."""

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from narrow import present
from torch import Tensor

import spikeguard as sg
from spikeguard.auditing.audit import Audit
from spikeguard.auditing.consistency import check_outcomes, inconsistencies
from spikeguard.auditing.merge import merge
from spikeguard.auditing.record import save
from spikeguard.auditing.verify import verify
from spikeguard.auditing.witnesses import Witnesses
from spikeguard.errors import UserError
from spikeguard.networks.classifier import Classifier
from spikeguard.records.schema import AttackRecord, AuditRecord, Flag
from spikeguard.records.studies import DemoRecord

RESULTS = Path(__file__).parents[2] / "results"

pytestmark = pytest.mark.compiled


def test_stored_records_say_nothing_that_does_not_follow(small_audit: Audit) -> None:
    assert inconsistencies(small_audit.record) == []
    assert inconsistencies(merge([small_audit.record, small_audit.record])) == []
    assert inconsistencies(AttackRecord.read(RESULTS / "cifar10-small" / "attack-own.json")) == []
    for network in DemoRecord.read(RESULTS / "demo.json").networks:
        for record in network.attacks.values():
            assert inconsistencies(record) == []


Values = dict[str, Any]
"""Of a record as JSON."""


def edits(values: Values) -> Iterator[tuple[str, Callable[[Values], None]]]:
    """Every edit of a kind that makes a record better than it is: (what, function of the plain values)."""

    def put(*path: Any) -> Callable[[Values], None]:
        *way, last, value = path

        def change(v: Any) -> None:
            for key in way:
                v = v[key]
            v[last] = value(v[last]) if callable(value) else value

        return change

    broken = next(i for i, f in enumerate(values["first_by"]) if f >= 0)
    alone = next(i for i, m in enumerate(values["members"]) if "alone" in m)
    later = next(i for i, m in enumerate(values["members"]) if m["first_by"] and i > alone)
    flipped = "".join("1" if i == broken else c for i, c in enumerate(values["right"]))
    yield "interval", put("worst_case", "high", lambda v: v + 0.1)
    yield "interval of clean", put("clean", "low", lambda v: v - 0.1)
    yield "interval alone", put("members", alone, "alone", "low", lambda v: v + 0.01)
    yield "images of an interval", put("worst_case", "n", 6000)
    yield "alone", put("members", alone, "alone", "value", lambda v: v - 1 / 60)
    yield "after", put("members", later, "after", lambda v: v + 0.05)
    yield "broken", put("members", alone, "broken", lambda v: v + 1)
    yield "first_by of a member", put("members", later, "first_by", lambda v: v + 1)
    yield "only_this_family", put("members", later, "only_this_family", lambda v: v + 1)
    yield "attempted", put("members", later, "attempted", 0)
    yield "right", put("right", flipped)
    yield "right_clean", put("right_clean", "1" * len(values["right"]))
    yield "member that is none", put("first_by", broken, 999)
    yield "index", put("index", 0, values["index"][1])
    yield "lengths", put("index", values["index"][1:])
    yield "verdict", put("verdict", lambda v: v.replace("under", "even under"))
    yield "effort", put("suite", "effort", "full")
    yield "version", put("suite", "version", "suite-v9")
    yield "hash", put("suite", "hash", "0" * 16)
    yield "masking", put("masking", "gradient", lambda v: v + 0.1)
    yield "masking from", put("masking", "pgd20", lambda v: v + 0.1)
    yield "family", put("without_family", values["members"][later]["family"], lambda v: v + 0.1)
    yield "member left out", put("left_out", {})
    yield "control without its flag", put("controls", "zero_budget", "left", 0.0)
    yield "failed without its flag", put("members", later, "failed", "it broke down")
    yield "random", put("random_model", True)
    yield "not reproduced", put("fresh_process", {"held": False, "witnesses": 0, "wrong": ["x"]})
    yield "convergence", put("convergence", "last_doubling", lambda v: v + 0.1)
    yield "convergence of none", put("convergence", "member", "nobody")
    yield "cost", put("members", alone, "seconds", -1.0)


def test_every_edit_of_a_number_is_found(small_audit: Audit) -> None:
    values = small_audit.record.to_json()
    values["fresh_process"] = None
    for what, change in edits(values):
        edited = copy.deepcopy(values)
        change(edited)
        try:
            wrong = inconsistencies(AuditRecord.from_json(edited))
        except UserError as error:
            wrong = [str(error)]
        assert wrong, what
        assert all("\n" not in line for line in wrong), what


def test_a_flag_that_follows_from_the_record_cannot_be_taken_out_or_made_milder(small_audit: Audit) -> None:
    values: Values = small_audit.record.to_json()
    values["controls"]["zero_budget"]["left"] = 0.0
    error = Flag("changed-at-eps-0", "error", "x")
    from dataclasses import replace

    record = AuditRecord.from_json(values)
    assert any("changed-at-eps-0 is missing" in w for w in inconsistencies(record))
    flagged = inconsistencies(replace(record, flags=(error, *record.flags)))
    assert not any("is missing" in w for w in flagged)
    milder = replace(record, flags=(replace(error, level="info"), *record.flags))
    assert any("another level" in w for w in inconsistencies(milder))


def test_tables_and_tests_do_not_read_outcomes_that_contradict_each_other(small_audit: Audit) -> None:
    values: Values = small_audit.record.to_json()
    check_outcomes(small_audit.record, "a")
    values["right"] = "1" * len(values["right"])
    with pytest.raises(UserError, match="right is another than first_by says"):
        check_outcomes(AuditRecord.from_json(values), "a")


def test_a_record_about_something_else_than_its_witnesses_is_found(
    small_net: Classifier, small_images: tuple[Tensor, Tensor], small_audit: Audit, tmp_path: Path
) -> None:
    from dataclasses import replace

    record = save(small_audit.record, small_audit.witnesses, tmp_path / "audit.json")
    x, y = small_images
    for other, name in (
        (replace(record, threat=replace(record.threat, eps=0.06)), "threat"),
        (replace(record, origin=replace(record.origin, data="cifar10")), "data"),
        (replace(record, origin=replace(record.origin, split="train")), "split"),
        (replace(record, seed=7), "seed"),
        (replace(record, index=tuple(i + 1 for i in record.index)), "index"),
        (replace(record, digests=replace(present(record.digests), model="0")), "digests"),
    ):
        wrong = verify(other, tmp_path, small_net, x, y).wrong
        assert any(f"about another {name}" in line for line in wrong), (name, wrong)
    assert any(
        "no digests" in w for w in verify(replace(record, digests=None), tmp_path, small_net, x, y).wrong
    )
    for place in ("/dev/zero", "../audit.witnesses.npz"):
        with pytest.raises(UserError, match="must lie beside it"):
            verify(
                replace(record, witnesses=replace(present(record.witnesses), file=place)),
                tmp_path,
                small_net,
                x,
                y,
            )


def test_witnesses_that_cannot_be_are_refused(
    small_audit: Audit, small_images: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    import torch

    held = small_audit.witnesses
    path = tmp_path / "w.npz"
    held.save(path)
    assert torch.equal(Witnesses.load(path, 60).grid, held.grid)
    n = len(held.rows)
    for rows, grid, message in (
        (held.rows + 60, held.grid, "outside the 60 images"),
        (held.rows - 60, held.grid, "outside"),
        (held.rows.flip(0), held.grid, "not sorted"),
        (held.rows.clone().fill_(3), held.grid, "not sorted"),
        (held.rows[:-1], held.grid, "differ in length"),
        (held.rows[:, None], held.grid, "differ in length"),
        (held.rows, held.grid[:, :, :7], "shape of an image"),
    ):
        Witnesses(rows, grid, held.exact_rows, held.exact).save(path)
        with pytest.raises(UserError, match=message):
            Witnesses.load(path, 60)
    twice = Witnesses(held.rows, held.grid, held.rows[:1], held.exact[:0].new_zeros(1, 1, 14, 14))
    twice.save(path)
    with pytest.raises(UserError, match="two witnesses"):
        Witnesses.load(path)
    with pytest.raises(UserError, match="images of shape"):
        held.read(torch.rand(60, 1, 28, 28), sg.Linf(0.03))
    with pytest.raises(UserError, match="beyond the"):
        held.read(small_images[0][: int(held.rows[-1])], sg.Linf(0.03))
    assert n
    shutil.rmtree(tmp_path)
