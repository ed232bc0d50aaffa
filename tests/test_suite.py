"""The suite as data: what its efforts hold, what they leave out and why, and its hash."""

import spikeguard as sg
from spikeguard.auditing.run import traits
from spikeguard.auditing.suite import AUTOATTACK, AUTOATTACK_RAND, BLACK, SUITES, fingerprint, members
from spikeguard.defenses import DEFENSES

THREAT = sg.Linf(0.03)


def test_every_defense_names_the_attack_that_is_adaptive_to_it():
    names = {m.key for m in SUITES["full"]}
    for name, kind in DEFENSES.items():
        assert kind.adaptive in names, f"{name} names no member of the suite as the attack adaptive to it"
        for effort in ("quick", "standard"):
            met, _ = members(
                effort, THREAT, frozenset({"neurons", "noise"}), adaptive=frozenset({kind.adaptive})
            )
            assert any(m.covers(a) for m in met for a in SUITES["full"] if a.key == kind.adaptive), (
                f"{effort} leaves out what is adaptive to {name}"
            )


def test_suites_grow_and_their_hash_changes_with_any_constant():
    quick, standard, full = ([m.id for m in SUITES[e]] for e in ("quick", "standard", "full"))
    assert {m.id for m in SUITES["quick"] if m.all} < set(standard)
    assert [m for m in full if m in standard] == standard
    dear = {"random-search1000", "rays1000", "square5000"}
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


def test_members_that_make_no_sense_are_left_out_with_a_reason(small_net):
    chosen, left = members("standard", sg.L2(1.0), traits(lambda x: x, False))
    names = {m.id for m in chosen}
    assert "cw100" in names
    assert "pgd10-ensemble-triangle-0.5" in {*names, *left}
    assert {"square5000", "rays1000"} <= names
    random, _ = members("full", THREAT, frozenset({"noise", "neurons"}))
    assert not {m.id for m in AUTOATTACK} & {m.id for m in random}
    assert any("eot" in m.id for m in random)
    for found, protocol in ((frozenset(), AUTOATTACK), (frozenset({"noise"}), AUTOATTACK_RAND)):
        chosen, left = members("autoattack", THREAT, found, adaptive=frozenset({"SA-PGD-30 pulled"}))
        assert (tuple(chosen), left) == (protocol, {})
