"""Records of audits: verified, merged, compared, shown; states and statistics."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from markupsafe import escape
from narrow import changed, present
from torch import Tensor

import spikeguard as sg
from spikeguard.auditing import suite
from spikeguard.auditing.audit import Audit
from spikeguard.auditing.choice import members
from spikeguard.auditing.compare import compare
from spikeguard.auditing.export import as_csv, as_latex, methods
from spikeguard.auditing.merge import merge, merge_files
from spikeguard.auditing.record import description, weights, with_fresh_check
from spikeguard.auditing.run import run_suite
from spikeguard.auditing.state import CLEAN_WRONG, ROBUST, State
from spikeguard.auditing.suite import fingerprint
from spikeguard.auditing.task import Task, traits
from spikeguard.auditing.verify import threat_of, verify
from spikeguard.auditing.witnesses import Witnesses
from spikeguard.errors import UserError
from spikeguard.networks.classifier import Classifier
from spikeguard.neurons import Noise, spiking
from spikeguard.records.schema import Accuracy, AuditRecord, Budget, FreshCheck, Origin, WitnessFile
from spikeguard.records.studies import DemoRecord, DemoSettings
from spikeguard.report.audit_page import write_page
from spikeguard.stats import COVERS, mcnemar, share_above

THREAT = sg.Linf(0.03)


pytestmark = pytest.mark.compiled


def test_anyone_can_check_a_record_and_a_forged_one_is_caught(
    small_net: Classifier, small_images: tuple[Tensor, Tensor], small_audit: Audit, tmp_path: Path
) -> None:
    x, y = small_images
    path = small_audit.save(tmp_path / "audit.json")
    record = AuditRecord.read(path)
    held = verify(record, tmp_path, small_net, x, y)
    assert held.wrong == ()
    assert held.claimed == held.held == sum(f >= 0 for f in record.first_by) > 0
    assert threat_of(record) == THREAT

    def said(**changes: object) -> tuple[str, ...]:
        return verify(changed(record, **changes), tmp_path, small_net, x, y).wrong

    kinder = replace(record.worst_case, value=0.9)
    assert any("worst_case accuracy is" in w for w in said(worst_case=kinder))
    assert any("another number" in w for w in said(worst_case=kinder))
    assert any("another number" in w for w in said(verdict="at most 90.0 %"))
    number = f"{100 * record.worst_case.value:.1f} %"
    assert any("another number" in w for w in said(verdict=f"at most 1{number}"))
    assert any("do not agree" in w for w in said(verdict=f"Not reliable (no-gradient): {number}"))
    assert any("clean accuracy is" in w for w in said(clean=replace(record.clean, value=0.99)))
    assert any(
        "recorded as wrong without attack" in w
        for w in said(first_by=(-1 if record.first_by[0] == -2 else -2, *record.first_by[1:]))
    )
    assert any(
        "not the one that the record was written with" in w
        for w in said(witnesses=WitnessFile(present(record.witnesses).file, "0"))
    )
    forged = replace(record, first_by=tuple(0 if f == ROBUST else f for f in record.first_by))
    assert any("recorded as broken" in w for w in verify(forged, tmp_path, small_net, x, y).wrong)
    assert any(
        "images or labels" in w for w in verify(record, tmp_path, small_net, x.flip(0), y.flip(0)).wrong
    )
    other = sg.build("small", classes=10, in_shape=(1, 14, 14), width=6)
    assert any("tensors" in w for w in verify(record, tmp_path, other, x, y).wrong)
    stored = Witnesses.load(tmp_path / "audit.witnesses.npz")
    clean = (x[stored.rows].double() * 65535).round().to(torch.int32)
    Witnesses(stored.rows, clean, stored.exact_rows, stored.exact).save(tmp_path / "audit.witnesses.npz")
    assert any("do not break" in w for w in verify(record, tmp_path, small_net, x, y).wrong)
    with pytest.raises(UserError, match="is about 60 images"):
        verify(record, tmp_path, small_net, x[:5], y[:5])


def test_a_random_model_is_scored_again_at_the_inputs_that_its_record_holds(
    small_net: Classifier,
    small_images: tuple[Tensor, Tensor],
    short_suite: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setitem(suite.SUITES, "quick", suite.SUITES["quick"][:4])
    x, y = (part[:10] for part in small_images)
    noisy = copy.deepcopy(small_net)
    for layer in spiking(noisy).values():
        layer.noise = Noise(0.3, at_eval=True)
    small_audit = sg.audit(noisy, x, y, THREAT, effort="quick")
    record = AuditRecord.read(small_audit.save(tmp_path / "audit.json"))
    assert record.random_model
    held = verify(record, tmp_path, noisy, x, y)
    assert (held.wrong, held.claimed, held.held) == ((), 10, 10)
    assert any("prints itself in another way" in w for w in verify(record, tmp_path, small_net, x, y).wrong)
    kinder = replace(record, right=(0.0,) * 10, worst_case=replace(record.worst_case, value=0.0))
    wrong = verify(kinder, tmp_path, noisy, x, y).wrong
    assert any("right more often than recorded" in w for w in wrong)
    assert any("worst_case accuracy is" in w for w in wrong)
    hidden = replace(kinder, first_by=(-2,) * 10)
    assert any("recorded as wrong without attack" in w for w in verify(hidden, tmp_path, noisy, x, y).wrong)
    text = write_page(
        replace(record, origin=Origin("noisy")), x, y, small_audit.witnesses, THREAT, tmp_path / "index.html"
    ).read_text()
    assert "The class of the mean logits over these draws" in text
    assert "own surrogate is below a hundredth" in text
    assert "with five restarts" in text


def test_what_a_fresh_process_does_not_find_is_not_reliable(small_audit: Audit) -> None:
    good = with_fresh_check(small_audit.record, FreshCheck(True, 3))
    assert (good.verdict, good.flags) == (small_audit.record.verdict, small_audit.record.flags)
    bad = with_fresh_check(
        small_audit.record, FreshCheck(False, 3, ("1 of 3 witnesses do not break their sample",))
    )
    assert bad.verdict.startswith("Not reliable (not-reproduced): ")
    assert (bad.flags[0].id, bad.flags[0].level) == ("not-reproduced", "error")
    assert "1 of 3 witnesses" in bad.flags[0].message


def test_a_union_is_verified_and_tabulated_like_its_parts(
    small_net: Classifier,
    small_images: tuple[Tensor, Tensor],
    short_audit: Audit,
    short_suite: None,
    tmp_path: Path,
) -> None:
    x, y = small_images
    again = sg.audit(small_net, x, y, THREAT, effort="quick", seed=1)
    paths = [one.save(tmp_path / name / "audit.json") for name, one in (("a", short_audit), ("b", again))]
    union = merge_files(paths, tmp_path / "union.json")
    assert AuditRecord.read(tmp_path / "union.json") == union
    held = verify(union, tmp_path, small_net, x, y)
    assert held.wrong == ()
    assert held.claimed == held.held == sum(f >= 0 for f in union.first_by) > 0
    assert union.worst_case.value <= min(short_audit.robust_accuracy, again.robust_accuracy)
    parts = zip(union.right, short_audit.record.right, again.record.right, strict=True)
    assert all(u == min(a, b) for u, a, b in parts)
    breaking = {union.members[f].record for f in union.first_by if f >= 0}
    assert breaking <= {0, 1}
    assert len(as_csv([union]).splitlines()) == 2
    assert "seed 0, 1" in methods(union)
    with pytest.raises(UserError, match="differ in suite"):
        compare(union, short_audit.record)
    bare = merge([short_audit.record, again.record])
    with pytest.raises(UserError, match="names no file of witnesses"):
        verify(bare, tmp_path, small_net, x, y)


def test_records_are_compared_and_shown(
    small_images: tuple[Tensor, Tensor], small_audit: Audit, tmp_path: Path
) -> None:
    x, y = small_images
    record = small_audit.record
    even = compare(record, record)
    assert (even.p, even.difference) == (1.0, 0.0)
    unharmed = tuple(1.0 if f != CLEAN_WRONG else 0.0 for f in record.first_by)
    found = compare(replace(record, right=unharmed, worst_case=record.clean), record)
    assert found.p < 0.05
    assert found.only_first == sum(f >= 0 for f in record.first_by)
    table = as_csv([replace(record, origin=Origin("runs/a&b")), record])
    assert table.splitlines()[1].startswith(f"runs/a&b,{100 * small_audit.clean_accuracy:.1f},")
    latex = as_latex([replace(record, origin=Origin("runs/a&b_1"))])
    assert r"runs/a\&b\_1" in latex
    assert latex.count(r"\\") == 2
    text = methods(record)
    assert f"at most {100 * small_audit.robust_accuracy:.1f} %" in text
    assert fingerprint("quick") in text
    named = replace(record, origin=Origin("a <net>"))
    page = write_page(named, x, y, small_audit.witnesses, THREAT, tmp_path / "index.html").read_text()
    assert "a &lt;net&gt;" in page
    assert all(COVERS in said for said in (page, text, even.says))
    stopped = replace(
        named, members=(replace(record.members[0], failed="RuntimeError: <no>"), *record.members[1:])
    )
    page = write_page(stopped, x, y, small_audit.witnesses, THREAT, tmp_path / "index.html").read_text()
    assert f"{record.members[0].title}: RuntimeError: &lt;no&gt;" in page
    assert str(escape(small_audit.verdict)) in page
    assert page.count("<svg") >= 5
    assert "accuracy left, %</text>" in page, "text in pictures stays text"
    other = replace(record, threat=Budget("linf", 0.1))
    for refused in (
        lambda: merge([record, other]),
        lambda: merge([record]),
        lambda: compare(record, other),
        lambda: as_csv([record, other]),
        lambda: methods(DemoRecord(DemoSettings(), finished=False)),
    ):
        with pytest.raises(UserError):
            refused()


def test_a_model_is_known_by_its_tensors_and_by_its_neurons_and_noise(
    small_net: Classifier, small_images: tuple[Tensor, Tensor], small_audit: Audit, tmp_path: Path
) -> None:
    record = AuditRecord.read(small_audit.save(tmp_path / "audit.json"))
    noisy, narrow = copy.deepcopy(small_net), copy.deepcopy(small_net)
    assert (weights(noisy), description(noisy)) == (weights(small_net), description(small_net))
    next(iter(spiking(noisy).values())).noise = Noise(0.1)
    for layer in spiking(narrow).values():
        layer.spec = replace(layer.spec, surrogate=sg.surrogates.Atan(8.0))
    for other in (noisy, narrow):
        assert weights(other) == weights(small_net)
        assert description(other) != description(small_net)
        assert any(
            "prints itself in another way" in w for w in verify(record, tmp_path, other, *small_images).wrong
        )


def test_a_table_holds_networks_of_one_shape(small_audit: Audit) -> None:
    recipe = {"network": "small", "options": {"width": 6}, "timesteps": 4, "neuron": {"decay": 0.5}}
    a, b = (replace(small_audit.record, origin=Origin(t, recipe=recipe)) for t in "ab")
    assert len(as_csv([a, b, small_audit.record]).splitlines()) == 4
    for change, message in (
        ({"timesteps": 8}, "number of time steps"),
        ({"neuron": {"decay": 0.9}}, "decay of the neurons"),
        ({"options": {"width": 7}}, "differ in network"),
    ):
        with pytest.raises(UserError, match=message):
            as_latex([a, replace(b, origin=Origin("b", recipe={**recipe, **change}))])


def test_random_models_are_compared_by_their_shares(small_audit: Audit) -> None:
    a = replace(
        small_audit.record,
        random_model=True,
        right=(0.9, 0.2, 0.6, 0.55),
        images=4,
        worst_case=Accuracy.of(0.5625, 4),
    )
    b = replace(a, right=(0.7, 0.1, 0.5, 0.45), worst_case=Accuracy.of(0.4375, 4))
    found = compare(a, b)
    assert found.difference == pytest.approx(12.5)
    deviation = 100 * (sum((v - 0.125) ** 2 for v in (0.2, 0.1, 0.1, 0.1)) / 4) ** 0.5 / 2
    assert found.interval == pytest.approx([12.5 - 1.959964 * deviation, 12.5 + 1.959964 * deviation])
    assert found.p < 1e-6
    assert compare(a, a).p == 1.0


def test_statistics_against_values_from_tables() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert share_above(0, 100) == 0.0
    for count, total in ((1, 20), (3, 1000), (5, 50), (20, 3000)):
        low = share_above(count, total)
        tail = 1 - float(
            torch.distributions.Binomial(total, torch.tensor(low, dtype=torch.float64))
            .log_prob(torch.arange(count).double())
            .exp()
            .sum()
        )
        assert tail == pytest.approx(0.05, abs=1e-4)


def test_a_state_is_read_back_as_it_was(
    small_net: Classifier, small_images: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    x, y = small_images
    rows, _ = members("quick", THREAT, traits(small_net, False))
    task = Task(small_net, x, y, THREAT, rows[:3])
    state = run_suite(task)
    state.save(tmp_path / "s.npz", {"a": 1})
    back = State.load(tmp_path / "s.npz", {"a": 1}, x.device)
    for name in State.TENSORS:
        assert torch.equal(getattr(back, name), getattr(state, name))
    assert back.done == state.done
    assert back.cost == state.cost
    assert back.after == state.after
