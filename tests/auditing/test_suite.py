"""The suite as data: what its efforts hold, what they leave out and why, and its hash."""

import spikeguard as sg
from spikeguard.auditing.choice import member_of, members
from spikeguard.auditing.member import BLACK
from spikeguard.auditing.suite import AUTOATTACK, AUTOATTACK_RAND, FULL, SUITES, fingerprint
from spikeguard.auditing.task import traits
from spikeguard.defenses import DEFENSES, TGO, ANNTwin, InputNoise
from spikeguard.networks.classifier import Classifier

THREAT = sg.Linf(0.03)


def test_every_defense_brings_the_attack_that_is_adaptive_to_it() -> None:
    for name, kind in DEFENSES.items():
        made = member_of(kind.adaptive)
        assert kind.adaptive.why.endswith("."), f"{name} does not say why its attack is adaptive"
        for effort in ("quick", "standard", "full"):
            met, _ = members(effort, THREAT, frozenset({"neurons", "noise"}), adaptive=(kind.adaptive,))
            assert any(m.covers(made) for m in met), f"{effort} leaves out what is adaptive to {name}"
    attacks = [kind.adaptive for kind in DEFENSES.values()]
    shared = [a.id for a in attacks if sum(a == b for b in attacks) > 1]
    # ways to craft adversaries hide from their own surrogate only, so that one attack is adaptive to them all
    assert len(set(shared)) <= 2, f"defenses share an attack: {shared}"
    assert len(shared) <= 8


def test_an_adaptive_attack_that_the_suite_has_is_its_member() -> None:
    assert member_of(TGO.adaptive) in FULL
    assert member_of(TGO.adaptive).needs == "neurons"
    new = member_of(InputNoise.adaptive)
    assert new not in FULL
    assert new.family == "adaptive sharpness"
    assert member_of(ANNTwin.adaptive).family == "own gradient"
    both = (TGO.adaptive, TGO.adaptive)
    met, _ = members("quick", THREAT, frozenset({"neurons"}), adaptive=both)
    assert len([m for m in met if m.covers(member_of(TGO.adaptive))]) == 1


def test_suites_grow_and_their_hash_changes_with_any_constant() -> None:
    quick, standard, full = ([m.id for m in SUITES[e]] for e in ("quick", "standard", "full"))
    assert {m.id for m in SUITES["quick"] if m.all} < set(standard)
    assert [m for m in full if m in standard] == standard
    dear = {"random-search1000", "rays1000", "square5000"}
    assert set(full[-len(dear) - 6 : -6]) == dear, "what is cheap comes first"
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


def test_members_that_make_no_sense_are_left_out_with_a_reason(small_net: Classifier) -> None:
    chosen, left = members("standard", sg.L2(1.0), traits(lambda x: x, False))
    names = {m.id for m in chosen}
    assert "cw100" in names
    assert "pgd10-ensemble-triangle-0.5" in {*names, *left}
    assert {"block1000-6000", "square200", "rays1000"} <= names
    assert "square5000" not in names
    random, _ = members("full", THREAT, frozenset({"noise", "neurons"}))
    assert not {m.id for m in AUTOATTACK} & {m.id for m in random}
    assert any("eot" in m.id for m in random)
    for found, protocol in ((frozenset(), AUTOATTACK), (frozenset({"noise"}), AUTOATTACK_RAND)):
        chosen, left = members("autoattack", THREAT, found, adaptive=(TGO.adaptive,))
        assert (tuple(chosen), left) == (protocol, {})
