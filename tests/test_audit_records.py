"""What is left of an audit: records that anyone can check, put together and compared.

States and statistics.
"""

import copy
from dataclasses import replace

import pytest
import torch
from markupsafe import escape

import spikeguard as sg
from spikeguard.auditing import compare
from spikeguard.auditing import run as runner
from spikeguard.auditing.record import confirmed, description, weights
from spikeguard.auditing.state import CLEAN_WRONG, ROBUST, State
from spikeguard.auditing.suite import fingerprint, members
from spikeguard.auditing.verify import threat_of, verify
from spikeguard.auditing.witnesses import Witnesses
from spikeguard.errors import UserError
from spikeguard.neurons import Noise, spiking
from spikeguard.records.files import read_json, write_json
from spikeguard.report.audit_page import write_page
from spikeguard.stats import mcnemar, share_above

THREAT = sg.Linf(0.03)


pytestmark = pytest.mark.compiled


def test_anyone_can_check_a_record_and_a_forged_one_is_caught(small_net, small_images, small_audit, tmp_path):
    x, y = small_images
    path = small_audit.save(tmp_path / "audit.json")
    record = read_json(path)
    held = verify(record, tmp_path, small_net, x, y)
    assert held.wrong == ()
    assert held.claimed == held.held == sum(f >= 0 for f in record["first"]) > 0
    assert threat_of(record) == THREAT

    def said(**changes):
        return verify({**record, **changes}, tmp_path, small_net, x, y).wrong

    kinder = {**record["worst_case"], "accuracy": 0.9}
    assert any("worst_case accuracy is" in w for w in said(worst_case=kinder))
    assert any("another number" in w for w in said(worst_case=kinder))
    assert any("another number" in w for w in said(verdict="at most 90.0 %"))
    number = f"{100 * record['worst_case']['accuracy']:.1f} %"
    assert any("another number" in w for w in said(verdict=f"at most 1{number}"))
    assert any("do not agree" in w for w in said(verdict=f"Not reliable (no-gradient): {number}"))
    assert any("clean accuracy is" in w for w in said(clean={**record["clean"], "accuracy": 0.99}))
    assert any(
        "told wrong from the start" in w
        for w in said(
            first=[-2, *record["first"][1:]] if record["first"][0] != -2 else [-1, *record["first"][1:]]
        )
    )
    assert any(
        "not the one that the record was written with" in w
        for w in said(witnesses={**record["witnesses"], "sha256": "0"})
    )
    forged = {**record, "first": [0 if f == ROBUST else f for f in record["first"]]}
    assert any("told broken" in w for w in verify(forged, tmp_path, small_net, x, y).wrong)
    assert any(
        "images or labels" in w for w in verify(record, tmp_path, small_net, x.flip(0), y.flip(0)).wrong
    )
    other = sg.build("small", classes=10, in_shape=(1, 28, 28), width=6)
    assert any("tensors" in w for w in verify(record, tmp_path, other, x, y).wrong)
    stored = Witnesses.load(tmp_path / "audit.witnesses.npz")
    clean = (x[stored.rows].double() * 65535).round().to(torch.int32)
    Witnesses(stored.rows, clean, stored.exact_rows, stored.exact).save(tmp_path / "audit.witnesses.npz")
    assert any("do not break" in w for w in verify(record, tmp_path, small_net, x, y).wrong)
    with pytest.raises(UserError, match="speaks of 60 images"):
        verify(record, tmp_path, small_net, x[:5], y[:5])


def test_a_random_model_is_scored_again_at_the_inputs_that_its_record_holds(
    small_net, small_images, tmp_path
):
    x, y = (part[:10] for part in small_images)
    noisy = copy.deepcopy(small_net)
    for layer in spiking(noisy).values():
        layer.noise = Noise(0.3, at_eval=True)
    small_audit = sg.audit(noisy, x, y, THREAT, effort="quick")
    record = read_json(small_audit.save(tmp_path / "audit.json"))
    assert record["random_model"]
    held = verify(record, tmp_path, noisy, x, y)
    assert (held.wrong, held.claimed, held.held) == ((), 10, 10)
    assert any("worst_case accuracy is" in w for w in verify(record, tmp_path, small_net, x, y).wrong)
    kinder = {**record, "right": [0.0] * 10, "worst_case": {**record["worst_case"], "accuracy": 0.0}}
    assert any("right more often than told" in w for w in verify(kinder, tmp_path, noisy, x, y).wrong)
    hidden = {**kinder, "first": [-2] * 10}
    assert any("told wrong from the start" in w for w in verify(hidden, tmp_path, noisy, x, y).wrong)
    text = write_page(
        {"target": "noisy", **record}, x, y, small_audit.witnesses, THREAT, tmp_path / "index.html"
    ).read_text()
    assert "The class of the mean logits over these draws" in text
    assert "own surrogate gives less than a hundredth" in text
    assert "with five restarts" in text


def test_what_a_fresh_process_does_not_find_is_not_reliable(small_audit):
    good = confirmed(small_audit.record, {"held": True, "witnesses": 3, "wrong": []})
    assert (good["verdict"], good["flags"]) == (small_audit.record["verdict"], small_audit.record["flags"])
    bad = confirmed(
        small_audit.record,
        {"held": False, "witnesses": 3, "wrong": ["1 of 3 witnesses do not break their sample"]},
    )
    assert bad["verdict"].startswith("Not reliable (not-reproduced): ")
    assert (bad["flags"][0]["id"], bad["flags"][0]["level"]) == ("not-reproduced", "error")
    assert "1 of 3 witnesses" in bad["flags"][0]["message"]


def test_records_are_merged_compared_and_told(small_net, small_images, small_audit, tmp_path):
    x, y = small_images
    again = sg.audit(small_net, x, y, THREAT, effort="quick", seed=1)
    union = compare.merge([small_audit.record, again.record])
    with pytest.raises(UserError, match="verify the records that it was merged from"):
        verify(union, tmp_path, small_net, x, y)
    with pytest.raises(UserError, match="differ in suite"):
        compare.compare(union, small_audit.record)
    assert union["worst_case"]["accuracy"] <= min(small_audit.robust_accuracy, again.robust_accuracy)
    assert [
        u <= min(a, b)
        for u, a, b in zip(union["right"], small_audit.record["right"], again.record["right"], strict=True)
    ]
    even = compare.compare(small_audit.record, small_audit.record)
    assert even["p"] == 1.0
    assert even["difference"] == 0.0
    weaker = {
        **small_audit.record,
        "right": [1.0 if f != CLEAN_WRONG else 0.0 for f in small_audit.record["first"]],
        "worst_case": small_audit.record["clean"],
    }
    told = compare.compare(weaker, small_audit.record)
    assert told["p"] < 0.05
    assert told["only_first"] == sum(f >= 0 for f in small_audit.record["first"])
    table = compare.as_csv([{**small_audit.record, "target": "runs/a&b"}, again.record])
    assert table.splitlines()[1].startswith(f"runs/a&b,{100 * small_audit.clean_accuracy:.1f},")
    latex = compare.as_latex([{**small_audit.record, "target": "runs/a&b_1"}])
    assert r"runs/a\&b\_1" in latex
    assert latex.count(r"\\") == 2
    said = compare.methods(small_audit.record)
    assert f"at most {100 * small_audit.robust_accuracy:.1f} %" in said
    assert fingerprint("quick") in said
    page = write_page(
        {**small_audit.record, "target": "a <net>"},
        x,
        y,
        small_audit.witnesses,
        THREAT,
        tmp_path / "index.html",
    ).read_text()
    assert "a &lt;net&gt;" in page
    assert str(escape(small_audit.verdict)) in page
    assert page.count("<svg") >= 5
    other = {**small_audit.record, "threat": {"linf": 0.1}}
    for refused in (
        lambda: compare.merge([small_audit.record, other]),
        lambda: compare.merge([small_audit.record]),
        lambda: compare.compare(small_audit.record, other),
        lambda: compare.as_csv([small_audit.record, other]),
        lambda: compare.methods({"kind": "demo"}),
    ):
        with pytest.raises(UserError):
            refused()


def test_a_model_is_told_by_its_tensors_and_by_its_neurons_and_noise(
    small_net, small_images, small_audit, tmp_path
):
    record = read_json(small_audit.save(tmp_path / "audit.json"))
    noisy, narrow = copy.deepcopy(small_net), copy.deepcopy(small_net)
    assert (weights(noisy), description(noisy)) == (weights(small_net), description(small_net))
    next(iter(spiking(noisy).values())).noise = Noise(0.1)
    for layer in spiking(narrow).values():
        layer.spec = replace(layer.spec, surrogate=sg.surrogates.Atan(8.0))
    for other in (noisy, narrow):
        assert weights(other) == weights(small_net)
        assert description(other) != description(small_net)
        assert any(
            "prints itself otherwise" in w for w in verify(record, tmp_path, other, *small_images).wrong
        )


def test_a_table_holds_networks_of_one_shape(small_audit):
    recipe = {"network": "small", "options": {"width": 6}, "timesteps": 4, "neuron": {"decay": 0.5}}
    a, b = ({**small_audit.record, "target": t, "recipe": recipe} for t in "ab")
    assert len(compare.as_csv([a, b, small_audit.record]).splitlines()) == 4
    for change, message in (
        ({"timesteps": 8}, "number of time steps"),
        ({"neuron": {"decay": 0.9}}, "decay of the neurons"),
        ({"options": {"width": 7}}, "differ in network"),
    ):
        with pytest.raises(UserError, match=message):
            compare.as_latex([a, {**b, "recipe": {**recipe, **change}}])


def test_random_models_are_compared_by_their_shares(small_audit):
    a = {
        **small_audit.record,
        "random_model": True,
        "right": [0.9, 0.2, 0.6, 0.55],
        "images": 4,
        "worst_case": {"accuracy": 0.5625},
    }
    b = {**a, "right": [0.7, 0.1, 0.5, 0.45], "worst_case": {"accuracy": 0.4375}}
    told = compare.compare(a, b)
    assert told["difference"] == pytest.approx(12.5)
    deviation = 100 * (sum((v - 0.125) ** 2 for v in (0.2, 0.1, 0.1, 0.1)) / 4) ** 0.5 / 2
    assert told["interval"] == pytest.approx([12.5 - 1.959964 * deviation, 12.5 + 1.959964 * deviation])
    assert told["p"] < 1e-6
    assert compare.compare(a, a)["p"] == 1.0


def test_statistics_against_values_from_tables():
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


def test_a_state_is_read_back_as_it_was(small_net, small_images, tmp_path):
    x, y = small_images
    rows, _ = members("quick", THREAT, runner.traits(small_net, False))
    task = runner.Task(small_net, x, y, THREAT, rows[:3])
    state = runner.run(task)
    state.save(tmp_path / "s.npz", {"a": 1})
    back = State.load(tmp_path / "s.npz", {"a": 1}, x.device)
    for name in State.TENSORS:
        assert torch.equal(getattr(back, name), getattr(state, name))
    assert back.done == state.done
    assert back.cost == state.cost
    write_json(tmp_path / "plain.json", {"a": back.after})
