"""A defense is a class and a line in the registry: all else reads it."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from conftest import awake

import spikeguard as sg
from spikeguard import defenses
from spikeguard.attacks import pgd
from spikeguard.attacks.adaptive import AdaptiveAttack
from spikeguard.auditing.choice import member_of
from spikeguard.defenses import DEFENSES, Defense, Hooks, StudyRow
from spikeguard.errors import UserError
from spikeguard.gradients import PerStep
from spikeguard.networks import build
from spikeguard.training.recipe import Recipe
from spikeguard.training.settings import describe, override
from studies.embedded import matrix


@dataclass(frozen=True)
class Drop(Defense):
    """Set a share of the weights' gradients to 0."""

    idea: ClassVar[str] = "fewer gradients"
    formula: ClassVar[str] = "G <- G |b|"
    source: ClassVar[str] = "this test"
    adaptive: ClassVar[AdaptiveAttack] = AdaptiveAttack(
        "pgd3-per-step", "PGD-3, per-step loss", pgd, {"steps": 3}, PerStep(), "Nothing else was trained for."
    )
    random_at_test: ClassVar[bool] = True
    row: ClassVar[StudyRow] = StudyRow("dropped gradients", {"share": 0.25})

    share: float = 0.5
    """Share of the gradients that become 0."""

    def start(self, net: torch.nn.Module) -> Hooks:
        return Hooks()


@pytest.fixture
def drop() -> Iterator[None]:
    sg.register(Drop)
    yield
    DEFENSES.added.clear()


def test_a_defense_is_a_class_and_a_line(drop: None) -> None:
    values = sg.Recipe().values()
    override(values, "defenses.drop.share", "1/8")
    recipe = Recipe.of(values)
    assert recipe.defenses == (Drop(share=0.125),)
    assert Recipe.of(recipe.values()) == recipe
    assert sg.defenses.Drop is Drop
    assert "Drop" in dir(sg.defenses)
    row = next(row for row in describe() if row.flag == "defenses.drop.share")
    assert row[1:] == ("number", "0.5", "Share of the gradients that become 0.")
    assert matrix.rows()["dropped gradients"] == (Drop(share=0.25),)
    names = [(c.group, c.row) for c in matrix.cells(matrix.StudySize(seeds=1))]
    assert {("BPTT", "dropped gradients"), ("AT", "dropped gradients")} <= set(names)
    assert Drop().is_random()
    assert member_of(Drop.adaptive).id == "pgd3-per-step"


def test_the_page_of_defenses_has_a_row_for_a_new_one(drop: None) -> None:
    import defense_page

    assert "| `drop` | Drop | fewer gradients | G <- G \\|b\\| | this test | not run |" in defense_page.page()


def test_the_study_without_it_is_as_before(drop: None) -> None:
    with_it = [c.name for c in matrix.cells(matrix.StudySize(seeds=1))]
    DEFENSES.added.pop("drop")
    try:
        before = [c.name for c in matrix.cells(matrix.StudySize(seeds=1))]
    finally:
        sg.register(Drop)
    assert [n for n in with_it if "dropped" not in n] == before


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("tgo", Drop, "there is a defense 'tgo' of spikeguard"),
        ("two words", Drop, "letters, digits"),
        ("other", int, "must be a class of"),
    ],
)
def test_what_is_no_defense_is_not_registered(name: str, kind: type, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sg.register(kind, name)
    assert name == "tgo" or name not in DEFENSES


def test_names_of_the_package_are_those_of_the_registry() -> None:
    assert {kind.__name__ for kind in DEFENSES.values()} <= set(defenses.__all__)
    code = "import spikeguard.defenses as d; assert all(hasattr(d, n) for n in d.__all__)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", DEFENSES)
def test_the_adaptive_attack_of_a_defense_runs_on_its_network(name: str) -> None:
    net = build("small", classes=10, in_shape=(1, 8, 8), timesteps=4, width=4, seed=1)
    defense = DEFENSES[name]()
    defense.prepare(net)
    net = awake(net)
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    y = net(x).argmax(1)
    for attack in defense.adaptive_attacks():
        member = member_of(attack)
        short = {k: min(v, 2) if isinstance(v, int) else v for k, v in member.settings.items()}
        got = replace(member, settings=short).run(net, x, y, sg.Linf(0.1), 0, torch.arange(3), draws=2)
        assert (got.x - x).abs().max() <= 0.1 + 1e-6
        assert got.backwards > 0


def test_noise_that_stays_on_meets_the_network_without_it_too() -> None:
    assert len(sg.TGO(noise_at_eval=True).adaptive_attacks()) == 2
    assert sg.TGO().adaptive_attacks() == (sg.TGO.adaptive,)
