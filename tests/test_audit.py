"""The audit from end to end on small networks: numbers, witnesses, resuming, records together, what is refused."""

import copy
import json
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import little_recipe
from markupsafe import escape

import spikeguard as sg
from spikeguard.auditing import combine, runner
from spikeguard.auditing.audit import RECORD, STATE
from spikeguard.auditing.masking import without_each_family
from spikeguard.auditing.recording import confirmed, description, weights
from spikeguard.auditing.state import CLEAN_WRONG, ROBUST, State
from spikeguard.auditing.suite import AUTOATTACK, AUTOATTACK_RAND, BLACK, SUITES, fingerprint, members
from spikeguard.auditing.verify import threat_of, verify
from spikeguard.auditing.witness import Witnesses
from spikeguard.defenses import DEFENSES
from spikeguard.errors import Interrupted, UserError
from spikeguard.neurons import Noise, spiking
from spikeguard.records import mcnemar, read_json, share_above, write_json
from spikeguard.report.audit_page import write_page

THREAT = sg.Linf(0.03)
pytestmark = pytest.mark.compiled


@pytest.fixture(scope="module")
def net(little_data):
    return sg.train(little_recipe(options={"width": 6}, epochs=6, validation=0.0, augment=False), data=little_data).net


@pytest.fixture(scope="module")
def images(little_data):
    return little_data.test.pixels()[:60], little_data.test.y[:60]


@pytest.fixture(scope="module")
def done(net, images):
    return sg.audit(net, *images, THREAT, effort="quick")


def without_times(record):
    text = json.dumps(record)
    kept = json.loads(text)
    for m in kept["members"]:
        m.pop("seconds", None)
    for key in ("cost", "machine"):
        kept.pop(key)
    return kept


def test_the_worst_case_is_the_union_of_all_members(done):
    record = done.record
    assert record["worst_case"]["accuracy"] == done.robust_accuracy < done.clean_accuracy
    assert done.robust_accuracy <= min(m["after"] for m in done.attacks) + 1e-9
    assert all(done.robust_accuracy <= told["accuracy"] for told in record["alone"].values())
    assert list(record["after"].values()) == sorted(record["after"].values(), reverse=True)
    first = torch.tensor(record["first"])
    assert float((first == ROBUST).double().mean()) == pytest.approx(done.robust_accuracy)
    assert float((first != CLEAN_WRONG).double().mean()) == pytest.approx(done.clean_accuracy)
    assert sum(m["first"] for m in done.attacks) == int((first >= 0).sum())
    assert all(v >= done.robust_accuracy - 1e-9 for v in record["without_each_family"].values())
    parts = record["masking"]
    assert parts["PGD-20"] == pytest.approx(parts["worst case"] + parts["optimiser"] + parts["gradient"] + parts["rest"])
    assert parts["worst case"] == pytest.approx(done.robust_accuracy)
    assert min(parts[k] for k in ("optimiser", "gradient", "rest")) >= 0


def test_leaving_a_family_out_tells_what_an_audit_without_it_would_say(net, images):
    """Held against an audit that really lacks the family."""
    x, y = images
    rows, _ = members("quick", THREAT, runner.traits(net, False))
    task = runner.Task(net, x, y, THREAT, rows)
    state = runner.run(task)
    told = without_each_family(task, state)
    for family in ("own gradient", "adaptive sharpness", "other surrogates"):
        kept = [m for m in rows if m.family != family]
        really = runner.run(runner.Task(net, x, y, THREAT, kept))
        assert told[family] == pytest.approx(float(really.right.double().mean()), abs=1e-9), family


def test_the_verdict_says_the_number_its_interval_and_what_one_attack_would_have_said(done):
    low, high = (100 * v for v in done.record["worst_case"]["interval"])
    assert done.verdict.startswith(f"at most {100 * done.robust_accuracy:.1f} % ({low:.1f} to {high:.1f}) under suite-v2, quick")
    assert f"would have said {100 * done.record['alone']['PGD-20']['accuracy']:.1f} %" in done.verdict
    assert done.reliable


def test_at_eps_zero_it_returns_the_clean_accuracy(net, images):
    zero = sg.audit(net, *images, sg.Linf(0.0), effort="quick")
    assert zero.robust_accuracy == zero.clean_accuracy
    assert zero.reliable


def test_batch_size_does_not_change_the_number(net, images, done):
    other = sg.audit(net, *images, THREAT, effort="quick", batch_size=13)
    assert abs(other.robust_accuracy - done.robust_accuracy) <= 1 / 60 + 1e-9  # a last bit of a kernel may flip one spike
    agree = sum(a == b for a, b in zip(other.record["first"], done.record["first"], strict=True))
    assert agree >= 54


def test_a_budget_an_image_and_other_norms_are_judged_too(net, images):
    x, y = images
    mixed = torch.where(torch.arange(60) < 30, 0.0, 0.1)
    got = sg.audit(net, x, y, sg.Linf(mixed), effort="quick")
    right = torch.tensor(got.record["right"])
    assert float(right[:30].mean()) == float((net(x[:30]).argmax(1) == y[:30]).float().mean())
    assert float(right[30:].mean()) < 0.3
    for threat in (sg.L2(0.8), sg.L1(6.0)):
        other = sg.audit(net, x, y, threat, effort="quick")
        assert other.robust_accuracy < other.clean_accuracy
        assert any(row["name"] == "Square-200" for row in other.record["members"])
        rows, found = other.witnesses.read(x, threat)
        threat.check(found, x[rows])


def test_a_stopped_audit_goes_on_to_the_same_record(net, images, done, tmp_path):
    stop = threading.Event()

    def tell(stage, number, total):
        if "SA-PGD-20 ASSG triangle" in stage:
            stop.set()

    with pytest.raises(Interrupted, match="--resume"):
        sg.audit(net, *images, THREAT, effort="quick", out=tmp_path, progress=tell, stop=stop)
    assert (tmp_path / STATE).exists()
    assert not (tmp_path / RECORD).exists()
    seen = []
    with pytest.raises(UserError, match="seed = 0, not 1"):
        sg.audit(net, *images, THREAT, effort="quick", out=tmp_path, seed=1)
    held = State.load(tmp_path / STATE, json.loads(np.load(tmp_path / STATE)["notes"].tobytes())["conditions"], torch.device("cpu"))
    assert held.earlier > 0
    resumed = sg.audit(net, *images, THREAT, effort="quick", out=tmp_path, progress=lambda stage, number, total: seen.append(stage))
    assert not any("FGSM" in s for s in seen), "it began anew"
    assert without_times(resumed.record) == without_times(done.record)
    assert resumed.record["cost"]["all_seconds"] > held.earlier
    assert not (tmp_path / STATE).exists()
    (tmp_path / STATE).write_bytes(b"half")
    with pytest.raises(UserError, match="no audit to go on with"):
        sg.audit(net, *images, THREAT, effort="quick", out=tmp_path)


def test_a_long_attack_is_stopped_inside_and_begun_anew(net, images, done, tmp_path):
    stop, passes = threading.Event(), []

    def count(*_):
        passes.append(1)
        if len(passes) == 300:
            stop.set()

    handle = net.register_forward_pre_hook(count)
    try:
        with pytest.raises(Interrupted, match=r"audit stopped at .*--resume"):
            sg.audit(net, *images, THREAT, effort="quick", out=tmp_path, stop=stop)
    finally:
        handle.remove()
    assert len(passes) <= 302
    assert not net._forward_pre_hooks
    resumed = sg.audit(net, *images, THREAT, effort="quick", out=tmp_path)
    assert without_times(resumed.record) == without_times(done.record)


def test_anyone_can_check_a_record_and_a_forged_one_is_caught(net, images, done, tmp_path):
    x, y = images
    path = done.save(tmp_path / "audit.json")
    record = read_json(path)
    held = verify(record, tmp_path, net, x, y)
    assert held.wrong == ()
    assert held.claimed == held.held == sum(f >= 0 for f in record["first"]) > 0
    assert threat_of(record) == THREAT

    def said(**changes):
        return verify({**record, **changes}, tmp_path, net, x, y).wrong

    kinder = {**record["worst_case"], "accuracy": 0.9}
    assert any("worst_case accuracy is" in w for w in said(worst_case=kinder))
    assert any("another number" in w for w in said(worst_case=kinder))
    assert any("another number" in w for w in said(verdict="at most 90.0 %"))
    number = f"{100 * record['worst_case']['accuracy']:.1f} %"
    assert any("another number" in w for w in said(verdict=f"at most 1{number}"))
    assert any("do not agree" in w for w in said(verdict=f"Not reliable (no-gradient): {number}"))
    assert any("clean accuracy is" in w for w in said(clean={**record["clean"], "accuracy": 0.99}))
    assert any(
        "told wrong from the start" in w for w in said(first=[-2, *record["first"][1:]] if record["first"][0] != -2 else [-1, *record["first"][1:]])
    )
    assert any("not the one that the record was written with" in w for w in said(witnesses={**record["witnesses"], "sha256": "0"}))
    forged = {**record, "first": [0 if f == ROBUST else f for f in record["first"]]}
    assert any("told broken" in w for w in verify(forged, tmp_path, net, x, y).wrong)
    assert any("images or labels" in w for w in verify(record, tmp_path, net, x.flip(0), y.flip(0)).wrong)
    other = sg.build("small", classes=10, in_shape=(1, 28, 28), width=6)
    assert any("tensors" in w for w in verify(record, tmp_path, other, x, y).wrong)
    stored = Witnesses.load(tmp_path / "audit.witnesses.npz")
    clean = (x[stored.rows].double() * 65535).round().to(torch.int32)
    Witnesses(stored.rows, clean, stored.exact_rows, stored.exact).save(tmp_path / "audit.witnesses.npz")
    assert any("do not break" in w for w in verify(record, tmp_path, net, x, y).wrong)
    with pytest.raises(UserError, match="speaks of 60 images"):
        verify(record, tmp_path, net, x[:5], y[:5])


def test_a_random_model_is_scored_again_at_the_inputs_that_its_record_holds(net, images, tmp_path):
    x, y = (part[:10] for part in images)
    noisy = copy.deepcopy(net)
    for layer in spiking(noisy).values():
        layer.noise = Noise(0.3, at_eval=True)
    done = sg.audit(noisy, x, y, THREAT, effort="quick")
    record = read_json(done.save(tmp_path / "audit.json"))
    assert record["random_model"]
    held = verify(record, tmp_path, noisy, x, y)
    assert (held.wrong, held.claimed, held.held) == ((), 10, 10)
    assert any("worst_case accuracy is" in w for w in verify(record, tmp_path, net, x, y).wrong)
    kinder = {**record, "right": [0.0] * 10, "worst_case": {**record["worst_case"], "accuracy": 0.0}}
    assert any("right more often than told" in w for w in verify(kinder, tmp_path, noisy, x, y).wrong)
    hidden = {**kinder, "first": [-2] * 10}
    assert any("told wrong from the start" in w for w in verify(hidden, tmp_path, noisy, x, y).wrong)
    text = write_page({"target": "noisy", **record}, x, y, done.witnesses, THREAT, tmp_path / "index.html").read_text()
    assert "The class of the mean logits over these draws" in text
    assert "own surrogate gives less than a hundredth" in text
    assert "with five restarts" in text


def test_what_a_fresh_process_does_not_find_is_not_reliable(done):
    good = confirmed(done.record, {"held": True, "witnesses": 3, "wrong": []})
    assert (good["verdict"], good["flags"]) == (done.record["verdict"], done.record["flags"])
    bad = confirmed(done.record, {"held": False, "witnesses": 3, "wrong": ["1 of 3 witnesses do not break their sample"]})
    assert bad["verdict"].startswith("Not reliable (not-reproduced): ")
    assert (bad["flags"][0]["id"], bad["flags"][0]["level"]) == ("not-reproduced", "error")
    assert "1 of 3 witnesses" in bad["flags"][0]["message"]


def test_a_model_that_changes_while_it_is_attacked_is_noticed(images):
    class Counting(torch.nn.Module):
        """Well-behaved for as long as it is looked at."""

        def __init__(self):
            super().__init__()
            self.lin, self.calls = torch.nn.Linear(784, 10), 0
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            if self.calls > 200:
                self.seen += 1
            return self.lin(x.flatten(1))

    x, y = (part[:10] for part in images)
    assert "model-changed" in {f.id for f in sg.audit(Counting(), x, y, THREAT, effort="quick").flags}


def test_records_are_merged_compared_and_told(net, images, done, tmp_path):
    x, y = images
    again = sg.audit(net, x, y, THREAT, effort="quick", seed=1)
    union = combine.merge([done.record, again.record])
    with pytest.raises(UserError, match="verify the records that it was merged from"):
        verify(union, tmp_path, net, x, y)
    with pytest.raises(UserError, match="differ in suite"):
        combine.compare(union, done.record)
    assert union["worst_case"]["accuracy"] <= min(done.robust_accuracy, again.robust_accuracy)
    assert [u <= min(a, b) for u, a, b in zip(union["right"], done.record["right"], again.record["right"], strict=True)]
    even = combine.compare(done.record, done.record)
    assert even["p"] == 1.0
    assert even["difference"] == 0.0
    weaker = {**done.record, "right": [1.0 if f != CLEAN_WRONG else 0.0 for f in done.record["first"]], "worst_case": done.record["clean"]}
    told = combine.compare(weaker, done.record)
    assert told["p"] < 0.05
    assert told["only_first"] == sum(f >= 0 for f in done.record["first"])
    table = combine.as_csv([{**done.record, "target": "runs/a&b"}, again.record])
    assert table.splitlines()[1].startswith(f"runs/a&b,{100 * done.clean_accuracy:.1f},")
    latex = combine.as_latex([{**done.record, "target": "runs/a&b_1"}])
    assert r"runs/a\&b\_1" in latex
    assert latex.count(r"\\") == 2
    said = combine.methods(done.record)
    assert f"at most {100 * done.robust_accuracy:.1f} %" in said
    assert fingerprint("quick") in said
    page = write_page({**done.record, "target": "a <net>"}, x, y, done.witnesses, THREAT, tmp_path / "index.html").read_text()
    assert "a &lt;net&gt;" in page
    assert str(escape(done.verdict)) in page
    assert page.count("<svg") >= 5
    other = {**done.record, "threat": {"linf": 0.1}}
    for refused in (
        lambda: combine.merge([done.record, other]),
        lambda: combine.merge([done.record]),
        lambda: combine.compare(done.record, other),
        lambda: combine.as_csv([done.record, other]),
        lambda: combine.methods({"kind": "demo"}),
    ):
        with pytest.raises(UserError):
            refused()


def test_a_plain_function_is_audited_too(images):
    """Any callable: here a linear map, whose worst case is known in closed form."""
    x, y = images
    weight = torch.randn(784, 10, generator=torch.Generator().manual_seed(0)) / 28
    y = (x.flatten(1) @ weight).argmax(1)
    got = sg.audit(lambda z: z.flatten(1) @ weight, x, y, sg.Linf(0.004), effort="quick")
    logits = x.flatten(1) @ weight
    breakable = torch.zeros(60, dtype=torch.bool)
    for k in range(10):
        toward = (weight[:, k] - weight[:, y].T).view(60, -1)
        reach = torch.where(toward > 0, (1 - x.flatten(1)).clamp(max=0.004), x.flatten(1).clamp(max=0.004)) * toward.abs()
        breakable |= (y != k) & (logits[:, k] - logits.gather(1, y[:, None])[:, 0] + reach.sum(1) > 0)
    assert 0.1 < float(breakable.float().mean()) < 0.9
    assert got.robust_accuracy == pytest.approx(1 - float(breakable.double().mean()), abs=1 / 60 + 1e-9)
    assert got.clean_accuracy == 1.0
    assert got.reliable


def test_other_networks_and_members_of_ones_own_take_part(net, images):
    x, y = images
    mine = sg.Member("mine", "mine", sg.pgd, {"steps": 2, "restarts": 1})
    got = sg.audit(net, x[:20], y[:20], THREAT, effort="quick", extra=[mine, net])
    names = [m["name"] for m in got.attacks]
    assert "mine" in names
    assert any("through network 2" in n for n in names)


def test_a_member_that_cheats_is_a_flag_and_what_it_found_does_not_count(net, images):
    x, y = images[0][:20], images[1][:20]

    def outside(model, x, y, threat):
        return sg.Attacked(1 - x, torch.ones_like(y, dtype=torch.bool), y.float(), 0, 0, y)

    def breaks(model, x, y, threat):
        raise IndexError("out of reach")

    rows = [sg.Member("outside", "mine", outside), sg.Member("breaks", "mine", breaks)]
    got = sg.audit(net, x, y, THREAT, effort="quick", extra=rows)
    assert got.robust_accuracy == sg.audit(net, x, y, THREAT, effort="quick").robust_accuracy
    assert [f.id for f in got.flags if f.level == "error"] == ["attack-invalid"]
    assert any(f.id == "attack-failed" and "IndexError: out of reach" in f.message for f in got.flags)
    assert not got.reliable
    assert got.verdict.startswith("Not reliable (attack-invalid)")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"effort": "huge"}, "unknown effort"),
        ({"batch_size": 0}, "batch_size"),
        ({"threat": 0.03}, "threat is a float"),
        ({"model": 3}, "not callable"),
        ({"x": torch.full((4, 1, 28, 28), 9.0)}, "must lie in"),
        ({"extra": [3]}, "extra holds"),
    ],
)
def test_bad_input_is_refused_in_one_line(net, images, change, message):
    x, y = images
    given = {"model": net, "x": x[:4], "y": y[:4], "threat": THREAT, "effort": "quick"} | change
    with pytest.raises(UserError) as error:
        sg.audit(given.pop("model"), given.pop("x"), given.pop("y"), given.pop("threat"), **given)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# the suite as data


def test_every_defence_names_the_attack_that_is_adaptive_to_it():
    names = {m.name for m in SUITES["full"]}
    for name, kind in DEFENSES.items():
        assert kind.adaptive in names, f"{name} names no member of the suite as the attack adaptive to it"
        for effort in ("quick", "standard"):
            met, _ = members(effort, THREAT, frozenset({"neurons", "noise"}), adaptive=frozenset({kind.adaptive}))
            assert any(m.covers(a) for m in met for a in SUITES["full"] if a.name == kind.adaptive), f"{effort} leaves out what is adaptive to {name}"


def test_suites_grow_and_their_hash_changes_with_any_constant():
    quick, standard, full = ([m.name for m in SUITES[e]] for e in ("quick", "standard", "full"))
    assert {m.name for m in SUITES["quick"] if m.all} < set(standard)
    assert [m for m in full if m in standard] == standard
    dear = {"random search-1000", "RayS-1000", "Square-5000"}
    assert set(full[-len(dear) - 5 : -5]) == dear, "what is cheap comes first"
    assert set(quick) < set(full)
    assert len(set(full)) == len(full)
    assert len({*(fingerprint(e) for e in SUITES), fingerprint("autoattack", random=True)}) == len(SUITES) + 1
    assert {m.family for m in SUITES["standard"]} > set(BLACK) - {"transfer"}
    before = fingerprint("quick")
    old = SUITES["quick"][1].settings
    old["loss"] = "margin"
    try:
        assert fingerprint("quick") != before
        assert len({fingerprint("quick", norm) for norm in ("linf", "l2", "l1")}) == 3
    finally:
        del old["loss"]


def test_members_that_make_no_sense_are_left_out_with_a_reason(net):
    chosen, left = members("standard", sg.L2(1.0), runner.traits(lambda x: x, False))
    names = {m.name for m in chosen}
    assert "C&W-100" in names
    assert "PGD-10 ensemble triangle 0.5" in {*names, *left}
    assert {"Square-5000", "RayS-1000"} <= names
    random, _ = members("full", THREAT, frozenset({"noise", "neurons"}))
    assert not {m.name for m in AUTOATTACK} & {m.name for m in random}
    assert any("EOT" in m.name for m in random)
    for traits, protocol in ((frozenset(), AUTOATTACK), (frozenset({"noise"}), AUTOATTACK_RAND)):
        chosen, left = members("autoattack", THREAT, traits, adaptive=frozenset({"SA-PGD-30 pulled"}))
        assert (tuple(chosen), left) == (protocol, {})


def test_a_model_is_told_by_its_tensors_and_by_its_neurons_and_noise(net, images, done, tmp_path):
    record = read_json(done.save(tmp_path / "audit.json"))
    noisy, narrow = copy.deepcopy(net), copy.deepcopy(net)
    assert (weights(noisy), description(noisy)) == (weights(net), description(net))
    next(iter(spiking(noisy).values())).noise = Noise(0.1)
    for layer in spiking(narrow).values():
        layer.spec = replace(layer.spec, surrogate=sg.Atan(8.0))
    for other in (noisy, narrow):
        assert weights(other) == weights(net)
        assert description(other) != description(net)
        assert any("prints itself otherwise" in w for w in verify(record, tmp_path, other, *images).wrong)


def test_a_table_holds_networks_of_one_shape(done):
    recipe = {"network": "small", "options": {"width": 6}, "timesteps": 4, "neuron": {"decay": 0.5}}
    a, b = ({**done.record, "target": t, "recipe": recipe} for t in "ab")
    assert len(combine.as_csv([a, b, done.record]).splitlines()) == 4
    for change, message in (
        ({"timesteps": 8}, "number of time steps"),
        ({"neuron": {"decay": 0.9}}, "decay of the neurons"),
        ({"options": {"width": 7}}, "differ in network"),
    ):
        with pytest.raises(UserError, match=message):
            combine.as_latex([a, {**b, "recipe": {**recipe, **change}}])


def test_random_models_are_compared_by_their_shares(done):
    a = {**done.record, "random_model": True, "right": [0.9, 0.2, 0.6, 0.55], "images": 4, "worst_case": {"accuracy": 0.5625}}
    b = {**a, "right": [0.7, 0.1, 0.5, 0.45], "worst_case": {"accuracy": 0.4375}}
    told = combine.compare(a, b)
    assert told["difference"] == pytest.approx(12.5)
    deviation = 100 * (sum((v - 0.125) ** 2 for v in (0.2, 0.1, 0.1, 0.1)) / 4) ** 0.5 / 2
    assert told["interval"] == pytest.approx([12.5 - 1.959964 * deviation, 12.5 + 1.959964 * deviation])
    assert told["p"] < 1e-6
    assert combine.compare(a, a)["p"] == 1.0


def test_statistics_against_values_from_tables():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert share_above(0, 100) == 0.0
    for count, total in ((1, 20), (3, 1000), (5, 50), (20, 3000)):
        low = share_above(count, total)
        tail = 1 - float(
            torch.distributions.Binomial(total, torch.tensor(low, dtype=torch.float64)).log_prob(torch.arange(count).double()).exp().sum()
        )
        assert tail == pytest.approx(0.05, abs=1e-4)


def test_a_state_is_read_back_as_it_was(net, images, tmp_path):
    x, y = images
    rows, _ = members("quick", THREAT, runner.traits(net, False))
    task = runner.Task(net, x, y, THREAT, rows[:3])
    state = runner.run(task)
    state.save(tmp_path / "s.npz", {"a": 1})
    back = State.load(tmp_path / "s.npz", {"a": 1}, x.device)
    for name in State.TENSORS:
        assert torch.equal(getattr(back, name), getattr(state, name))
    assert back.done == state.done
    assert back.cost == state.cost
    write_json(tmp_path / "plain.json", {"a": back.after})
