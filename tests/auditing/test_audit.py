"""The audit from end to end on small networks.

Numbers, witnesses, resuming, records together, what is refused.
"""

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from narrow import present
from torch import Tensor

import spikeguard as sg
from spikeguard.attacks import Attacked
from spikeguard.auditing.audit import RECORD, STATE, Audit
from spikeguard.auditing.choice import members
from spikeguard.auditing.findings import without_each_family
from spikeguard.auditing.member import LOCAL
from spikeguard.auditing.run import run_suite
from spikeguard.auditing.state import CLEAN_WRONG, ROBUST, State
from spikeguard.auditing.task import Task, traits
from spikeguard.errors import Interrupted, UserError
from spikeguard.models import Model
from spikeguard.networks.classifier import Classifier
from spikeguard.records.schema import AuditRecord, Cost
from spikeguard.threat import Threat

THREAT = sg.Linf(0.03)


pytestmark = pytest.mark.compiled


def without_times(record: AuditRecord) -> AuditRecord:
    return replace(
        record, members=tuple(replace(m, seconds=0.0) for m in record.members), cost=Cost(), witnesses=None
    )


def test_the_worst_case_is_the_union_of_all_members(small_audit: Audit) -> None:
    record = small_audit.record
    assert record.worst_case.value == small_audit.robust_accuracy < small_audit.clean_accuracy
    assert small_audit.robust_accuracy <= min(present(m.after) for m in small_audit.attacks) + 1e-9
    assert all(small_audit.robust_accuracy <= alone.value for alone in record.alone.values())
    assert list(record.after.values()) == sorted(record.after.values(), reverse=True)
    first = torch.tensor(record.first_by)
    assert float((first == ROBUST).double().mean()) == pytest.approx(small_audit.robust_accuracy)
    assert float((first != CLEAN_WRONG).double().mean()) == pytest.approx(small_audit.clean_accuracy)
    assert sum(m.first_by for m in small_audit.attacks) == int((first >= 0).sum())
    assert all(v >= small_audit.robust_accuracy - 1e-9 for v in record.without_family.values())
    parts = present(record.masking)
    assert parts.pgd20 == pytest.approx(parts.worst_case + parts.optimizer + parts.gradient + parts.rest)
    assert parts.worst_case == pytest.approx(small_audit.robust_accuracy)
    assert min(parts.optimizer, parts.gradient, parts.rest) >= 0


def test_leaving_a_family_out_gives_what_an_audit_without_it_would_find(
    small_net: Classifier, small_images: tuple[Tensor, Tensor], short_suite: None
) -> None:
    """Held against an audit that really lacks the family."""
    x, y = (part[:30] for part in small_images)
    # the local search attacks only what nobody broke: without a family it would have begun elsewhere
    rows = [m for m in members("quick", THREAT, traits(small_net, False))[0] if m.family != LOCAL]
    task = Task(small_net, x, y, THREAT, rows)
    state = run_suite(task)
    shares = without_each_family(task, state)
    for family in ("own gradient", "adaptive sharpness", "other surrogates"):
        kept = [m for m in rows if m.family != family]
        really = run_suite(Task(small_net, x, y, THREAT, kept))
        assert shares[family] == pytest.approx(float(really.right.double().mean()), abs=1e-9), family


def test_the_verdict_says_the_number_its_interval_and_what_one_attack_would_have_said(
    small_audit: Audit,
) -> None:
    worst = small_audit.record.worst_case
    low, high = 100 * worst.low, 100 * worst.high
    assert small_audit.verdict.startswith(
        f"at most {100 * small_audit.robust_accuracy:.1f} % ({low:.1f} to {high:.1f}) under suite-v4, quick"
    )
    assert f"would have said {100 * small_audit.record.alone['pgd20'].value:.1f} %" in small_audit.verdict
    assert small_audit.reliable


def test_at_eps_zero_it_returns_the_clean_accuracy(
    small_net: Classifier, small_images: tuple[Tensor, Tensor], short_suite: None
) -> None:
    x, y = (part[:20] for part in small_images)
    zero = sg.audit(small_net, x, y, sg.Linf(0.0), effort="quick")
    assert zero.robust_accuracy == zero.clean_accuracy
    assert zero.reliable


def test_batch_size_does_not_change_the_number(
    small_net: Classifier, small_images: tuple[Tensor, Tensor], short_audit: Audit, short_suite: None
) -> None:
    other = sg.audit(small_net, *small_images, THREAT, effort="quick", batch_size=25)
    assert (
        abs(other.robust_accuracy - short_audit.robust_accuracy) <= 1 / 60 + 1e-9
    )  # a last bit of a kernel may flip one spike
    agree = sum(a == b for a, b in zip(other.record.first_by, short_audit.record.first_by, strict=True))
    assert agree >= 54


def test_a_budget_an_image_and_other_norms_are_judged_too(
    small_net: Classifier, small_images: tuple[Tensor, Tensor], short_suite: None
) -> None:
    x, y = small_images
    mixed = torch.where(torch.arange(60) < 30, 0.0, 0.1)
    got = sg.audit(small_net, x, y, sg.Linf(mixed), effort="quick")
    right = torch.tensor(got.record.right)
    assert float(right[:30].mean()) == float((small_net(x[:30]).argmax(1) == y[:30]).float().mean())
    assert float(right[30:].mean()) < 0.3
    x, y = x[:30], y[:30]
    for threat in (sg.L2(0.8), sg.L1(6.0)):
        other = sg.audit(small_net, x, y, threat, effort="quick")
        assert other.robust_accuracy < other.clean_accuracy
        assert any(row.id == "square200" for row in other.record.members)
        rows, found = other.witnesses.read(x, threat)
        threat.check(found, x[rows])


def test_a_stopped_audit_goes_on_to_the_same_record(
    small_net: Classifier,
    small_images: tuple[Tensor, Tensor],
    short_audit: Audit,
    short_suite: None,
    tmp_path: Path,
) -> None:
    stop = threading.Event()

    def progress(stage: str, number: int, total: int) -> None:
        if "SA-PGD-20, ASSG triangle" in stage:
            stop.set()

    with pytest.raises(Interrupted, match="--resume"):
        sg.audit(small_net, *small_images, THREAT, effort="quick", out=tmp_path, progress=progress, stop=stop)
    assert (tmp_path / STATE).exists()
    assert not (tmp_path / RECORD).exists()
    seen: list[str] = []
    with pytest.raises(UserError, match="seed = 0, not 1"):
        sg.audit(small_net, *small_images, THREAT, effort="quick", out=tmp_path, seed=1)
    held = State.load(
        tmp_path / STATE,
        json.loads(np.load(tmp_path / STATE)["notes"].tobytes())["conditions"],
        torch.device("cpu"),
    )
    assert held.earlier > 0
    resumed = sg.audit(
        small_net,
        *small_images,
        THREAT,
        effort="quick",
        out=tmp_path,
        progress=lambda stage, number, total: seen.append(stage),
    )
    assert not any("FGSM" in s for s in seen), "it began anew"
    assert without_times(resumed.record) == without_times(
        replace(short_audit.record, witnesses=resumed.record.witnesses)
    )
    assert present(resumed.record.cost.total_seconds) > held.earlier
    assert not (tmp_path / STATE).exists()
    (tmp_path / STATE).write_bytes(b"half")
    with pytest.raises(UserError, match="no audit to resume"):
        sg.audit(small_net, *small_images, THREAT, effort="quick", out=tmp_path)


def test_a_long_attack_is_stopped_inside_and_begun_anew(
    small_net: Classifier,
    small_images: tuple[Tensor, Tensor],
    short_audit: Audit,
    short_suite: None,
    tmp_path: Path,
) -> None:
    stop = threading.Event()
    passes: list[int] = []

    def count(*_: object) -> None:
        passes.append(1)
        if len(passes) == 120:
            stop.set()

    handle = small_net.register_forward_pre_hook(count)
    try:
        with pytest.raises(Interrupted, match=r"audit stopped at .*--resume"):
            sg.audit(small_net, *small_images, THREAT, effort="quick", out=tmp_path, stop=stop)
    finally:
        handle.remove()
    assert len(passes) <= 122
    assert not small_net._forward_pre_hooks
    resumed = sg.audit(small_net, *small_images, THREAT, effort="quick", out=tmp_path)
    assert without_times(resumed.record) == without_times(
        replace(short_audit.record, witnesses=resumed.record.witnesses)
    )


def test_a_model_that_changes_with_every_call_is_noticed_and_put_back(
    small_images: tuple[Tensor, Tensor],
) -> None:
    class Counting(torch.nn.Module):
        """Another function with every call."""

        def __init__(self) -> None:
            super().__init__()
            self.lin = torch.nn.Linear(196, 10)
            self.register_buffer("seen", torch.zeros(()))
            self.seen: Tensor

        def forward(self, x: Tensor) -> Tensor:
            self.seen += 1
            logits: Tensor = self.lin(x.flatten(1))
            return logits * (1 + self.seen / 1000)

    x, y = (part[:10] for part in small_images)
    model = Counting().eval()
    raised = {f.id for f in sg.audit(model, x, y, THREAT, effort="quick").flags}
    assert float(model.seen) == 0.0
    assert {"model-changed", "state-carried-over"} <= raised


def test_a_plain_function_is_audited_too(small_images: tuple[Tensor, Tensor]) -> None:
    """Any callable: here a linear map, whose worst case is known in closed form."""
    x, y = small_images
    weight, eps = torch.randn(196, 10, generator=torch.Generator().manual_seed(0)) / 14, 0.016
    y = (x.flatten(1) @ weight).argmax(1)
    got = sg.audit(lambda z: z.flatten(1) @ weight, x, y, sg.Linf(eps), effort="quick")
    logits = x.flatten(1) @ weight
    breakable = torch.zeros(60, dtype=torch.bool)
    for k in range(10):
        toward = (weight[:, k] - weight[:, y].T).view(60, -1)
        reach = (
            torch.where(toward > 0, (1 - x.flatten(1)).clamp(max=eps), x.flatten(1).clamp(max=eps))
            * toward.abs()
        )
        breakable |= (y != k) & (logits[:, k] - logits.gather(1, y[:, None])[:, 0] + reach.sum(1) > 0)
    assert 0.1 < float(breakable.float().mean()) < 0.9
    assert got.robust_accuracy == pytest.approx(1 - float(breakable.double().mean()), abs=1 / 60 + 1e-9)
    assert got.clean_accuracy == 1.0
    assert got.reliable


def test_other_networks_and_members_of_ones_own_take_part(
    small_net: Classifier, small_images: tuple[Tensor, Tensor], short_suite: None
) -> None:
    x, y = small_images
    mine = sg.auditing.Member("mine", "mine", sg.pgd, {"steps": 2, "restarts": 1})
    got = sg.audit(small_net, x[:20], y[:20], THREAT, effort="quick", extra=[mine, small_net])
    names = [m.id for m in got.attacks]
    assert "mine" in names
    assert "pgd40-transfer2" in names


def test_a_member_that_cheats_is_a_flag_and_what_it_found_does_not_count(
    small_net: Classifier, small_images: tuple[Tensor, Tensor], short_suite: None
) -> None:
    x, y = small_images[0][:20], small_images[1][:20]

    def outside(model: Model, x: Tensor, y: Tensor, threat: Threat) -> Attacked:
        return Attacked(1 - x, torch.ones_like(y, dtype=torch.bool), y.float(), 0, 0, y)

    def breaks(model: Model, x: Tensor, y: Tensor, threat: Threat) -> Attacked:
        raise IndexError("out of reach")

    rows = [sg.auditing.Member("outside", "mine", outside), sg.auditing.Member("breaks", "mine", breaks)]
    got = sg.audit(small_net, x, y, THREAT, effort="quick", extra=rows)
    assert got.robust_accuracy == sg.audit(small_net, x, y, THREAT, effort="quick").robust_accuracy
    assert [f.id for f in got.flags if f.level == "error"] == ["attack-invalid"]
    assert any(f.id == "attack-failed" and "IndexError: out of reach" in f.message for f in got.flags)
    assert not got.reliable
    assert got.verdict.startswith("Not reliable (attack-invalid)")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"effort": "huge"}, "effort = 'huge' must be one of"),
        ({"batch_size": 0}, "batch_size"),
        ({"threat": 0.03}, "threat = 0.03 must be a norm"),
        ({"model": 3}, "not callable"),
        ({"x": torch.full((4, 1, 14, 14), 9.0)}, "must lie in"),
        ({"extra": [3]}, "extra = [3]"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    small_net: Classifier, small_images: tuple[Tensor, Tensor], change: dict[str, Any], message: str
) -> None:
    x, y = small_images
    given: dict[str, Any] = {
        "model": small_net,
        "x": x[:4],
        "y": y[:4],
        "threat": THREAT,
        "effort": "quick",
    } | change
    with pytest.raises(UserError) as error:
        sg.audit(given.pop("model"), given.pop("x"), given.pop("y"), given.pop("threat"), **given)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
