"""TGO in a loop of the user's own: the same numbers as in ours, whatever torch does around the loop."""

import copy
import multiprocessing
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import spikeguard as sg
from spikeguard.data.images import Dataset
from spikeguard.defenses import TGO, Step
from spikeguard.errors import SpikeguardWarning, UserError
from spikeguard.neurons import seed_noise, spiking
from spikeguard.random import draws
from spikeguard.training.objective import optimizer, rate
from spikeguard.training.recipe import Recipe
from spikeguard.training.trainer import Trainer

Gradients = list[Tensor]


class Net(nn.Module):
    """A user's own: plain torch, a loop over nothing, time first inside."""

    def __init__(self, kind: str = "none") -> None:
        super().__init__()
        self.kind = kind
        self.first = nn.Sequential(nn.Linear(6, 12), sg.LIF(decay=0.5))
        self.second = nn.Sequential(nn.Linear(12, 12), nn.Dropout(0.2), sg.LIF(decay=0.5))
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.expand(4, *x.shape)
        for part in (self.first, self.second):
            if self.kind == "none":
                h = part(h)
            else:
                h = checkpoint(part, h, use_reentrant=self.kind == "reentrant")
        logits: Tensor = self.head(h.mean(0))
        return logits


def net(kind: str = "none", seed: int = 0) -> Net:
    torch.manual_seed(seed)
    made = Net(kind)
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(1.5)
    return made.train()


def batch(seed: int = 0, n: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 6, generator=generator), torch.randint(0, 3, (n,), generator=generator)


def hinge(model: nn.Module, run: Callable[[], object], delta: float = 0.5) -> float:
    """The constraint of what runs, computed from its potentials."""
    with sg.tap(model) as opened:
        run()
    return sum(float((delta - u.abs()).clamp(min=0).mean()) for u in opened.potentials.values())


def gradients(model: nn.Module) -> Gradients:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def one_step(model: nn.Module, scale: float = 1.0, sigma: float = 0.1) -> tuple[float, Gradients]:
    """Penalty and gradients of one batch at half of the schedule."""
    x, y = batch()
    model.zero_grad()
    with sg.guard(model, total_steps=2, steps_done=1, sigma=sigma, lambda_max=2.0) as g:
        torch.manual_seed(3)  # of dropout and noise
        loss = F.cross_entropy(model(x.requires_grad_()), y)
        penalty = g.penalty()
        (scale * (loss + penalty)).backward()
    return float(penalty.detach()), gradients(model)


def test_the_penalty_is_lambda_times_the_hinge_summed_over_layers() -> None:
    model, (x, _) = net().eval(), batch()
    expected = hinge(model, lambda: model(x))
    model.second[1] = nn.Identity()  # no dropout
    model.train()
    with sg.guard(model, total_steps=4, steps_done=2, sigma=0.0, lambda_max=0.6) as g:
        model(x)
        assert g.weight == pytest.approx(0.3)
        assert float(g.penalty().detach()) == pytest.approx(0.3 * expected, rel=1e-5)


@pytest.mark.parametrize("at", [False, True])
def test_a_plain_loop_with_guard_gives_the_numbers_of_the_defense_in_our_training(
    at: bool, little_data: Dataset
) -> None:
    settings = TGO(delta=0.4, sigma=0.1, lambda_max=0.8)
    crafting = sg.AT(eps=0.05, steps=1, noise="fresh")
    recipe = Recipe(
        defenses=(crafting, settings) if at else (settings,),
        epochs=1,
        batch_size=20,
        timesteps=2,
        options={"width": 2},
        seed=4,
    )
    trainer = Trainer(recipe, little_data, torch.device("cpu"))
    plain = copy.deepcopy(trainer.net)
    for layer in spiking(plain).values():
        layer.noise = None  # TGO has set it
    step, by_hand = optimizer(recipe, plain), list[float]()
    x, y = little_data.train.pixels()[:20], little_data.train.y[:20]
    ours = []
    for k in range(3):
        trainer.at.batch = k
        ours.append(trainer.step(x, y)["penalty"])
    total = trainer.per_epoch
    with sg.guard(plain.train(), total_steps=total, delta=0.4, sigma=0.1, lambda_max=0.8) as g:
        for k in range(3):
            for group in step.param_groups:
                group["lr"] = rate(recipe, k / total)
            seed_noise(plain, draws.key(recipe.seed, "noise", k))
            images = x
            if at:
                key = draws.key(recipe.seed, "craft", k, 0)
                images = crafting.adversaries(Step(plain, x, y, key, k / total))
            loss = F.cross_entropy(plain(images), y)
            penalty = g.penalty()
            step.zero_grad()
            (loss + penalty).backward()
            step.step()
            g.step()
            by_hand.append(float(penalty.detach()))
    assert by_hand == pytest.approx(ours, rel=1e-4, abs=1e-7)
    assert by_hand[2] > 0
    for a, b in zip(plain.parameters(), trainer.net.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("kind", ["non-reentrant", "reentrant"])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_checkpoints_of_both_kinds_give_the_gradients_of_none(kind: str, scale: float) -> None:
    penalty, expected = one_step(net())
    again, found = one_step(net(kind), scale)
    assert again == pytest.approx(penalty, rel=1e-6)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a / scale, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["none", "non-reentrant", "reentrant"])
def test_the_penalty_moves_the_gradients(kind: str) -> None:
    model, (x, y) = net(kind), batch()
    _, guarded = one_step(model)
    model.zero_grad()
    with sg.guard(model, total_steps=2, steps_done=1, lambda_max=2.0) as g:
        torch.manual_seed(3)
        loss = F.cross_entropy(model(x.requires_grad_()), y)
        g.clear()
        loss.backward()
    assert not torch.allclose(guarded[0], gradients(model)[0], atol=1e-4)


def test_a_backward_pass_through_a_checkpoint_leaves_nothing_for_the_next_penalty() -> None:
    for kind in ("non-reentrant", "reentrant"):
        model, (x, y) = net(kind), batch()
        with sg.guard(model, total_steps=9) as g:
            (F.cross_entropy(model(x.requires_grad_()), y) + g.penalty()).backward()
            g.step()  # it would refuse passes without a penalty
            with pytest.raises(UserError, match="without a forward pass"):
                g.penalty()


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    def run(parts: int, one_penalty: bool) -> Gradients:
        model, (x, y) = net(), batch()
        model.second[1] = nn.Identity()
        with sg.guard(model, total_steps=2, steps_done=1, sigma=0.0, lambda_max=2.0) as g:
            losses = []
            for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True):
                losses.append(F.cross_entropy(model(a), b) / parts)
                if not one_penalty:
                    (losses.pop() + g.penalty() / parts).backward()
            if one_penalty:
                (torch.stack(losses).sum() + g.penalty()).backward()
            g.step()
        return gradients(model)

    whole = run(1, False)
    for parts, one_penalty in ((4, False), (4, True)):
        for a, b in zip(run(parts, one_penalty), whole, strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-7)


def test_autocast_and_a_gradient_scaler_change_roundings_only() -> None:
    _, expected = one_step(net(), sigma=0.0)
    model, (x, y) = net(), batch()
    scaler, step = (
        torch.amp.GradScaler("cpu", init_scale=2.0**10),
        torch.optim.SGD(model.parameters(), lr=0.1),
    )
    with sg.guard(model, total_steps=2, steps_done=1, sigma=0.0, lambda_max=2.0) as g:
        torch.manual_seed(3)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(x), y) + g.penalty()
        assert loss.dtype == torch.float32
        scaler.scale(loss).backward()
        scaler.unscale_(step)
        found = gradients(model)
        scaler.step(step)
        scaler.update()
        g.step()
    together = torch.cat([a.flatten() for a in found]), torch.cat([b.flatten() for b in expected])
    assert F.cosine_similarity(*together, dim=0) > 0.97
    assert float(together[0].norm() / together[1].norm()) == pytest.approx(1, abs=0.1)


def test_passes_that_do_not_train_do_not_count() -> None:
    model, (x, y) = net(), batch()
    with sg.guard(model, total_steps=5) as g:
        sg.pgd(model, x, y, sg.Linf(0.1), steps=2, restarts=1)
        sg.pgd(lambda x: model(x), x, y, sg.Linf(0.1), steps=2, restarts=1)
        with g.paused():
            model(x)
        with torch.no_grad():
            model(x)
        model.eval()
        model(x)
        with pytest.raises(UserError, match=r"penalty.. without a forward pass since the last call"):
            g.penalty()
        model.train()
        model(x)
        g.penalty()


def test_neurons_are_noisy_only_while_they_train_unless_asked() -> None:
    model, (x, _) = net(), batch()
    model.second[1] = nn.Identity()

    def answers() -> bool:
        return torch.equal(model(x), model(x))

    for at_eval in (False, True):
        model.eval()
        clean = model(x)
        with sg.guard(model, total_steps=5, sigma=0.3, lambda_max=0.0, noise_at_eval=at_eval):
            assert answers() is not at_eval
            model.train()
            assert not answers()
        assert torch.equal(model.eval()(x), clean)
        assert all(layer.noise is None and not layer.requests for layer in spiking(model).values())


def test_an_exception_inside_restores_the_network() -> None:
    model, (x, _) = net(), batch()
    g = sg.guard(model, total_steps=5)

    def fail() -> None:
        with g:
            model(x)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert all(not layer.requests for layer in spiking(model).values())
    with pytest.raises(UserError, match=r"penalty.. of a closed guard"):
        g.penalty()
    with pytest.raises(UserError, match=r"step.. of a closed guard"):
        g.step()
    with g:  # it may be opened again
        model(x)
        g.penalty()
        g.step()
    assert g.steps_done == 1


def test_wrong_use_is_refused_in_one_line() -> None:
    model, (x, _) = net(), batch()
    with pytest.raises(UserError, match="has no neurons that spikeguard knows"):
        sg.guard(nn.Linear(2, 2), total_steps=1)
    for settings, message in (
        ({"total_steps": 0}, "total_steps = 0 must be at least 1"),
        ({"total_steps": 3, "steps_done": 4}, "steps_done = 4 must lie in"),
        ({"total_steps": 3, "delta": 0.0}, "delta = 0.0 must be"),
        ({"total_steps": 3, "sigma": -1.0}, "sigma = -1.0 must be"),
    ):
        with pytest.raises(UserError, match=message):
            sg.guard(model, **settings)
    with pytest.warns(SpikeguardWarning, match="above delta / 3"):
        sg.guard(model, total_steps=1, sigma=0.3)
    with sg.guard(model, total_steps=1) as g:
        with pytest.raises(UserError, match="open guard already"):
            sg.guard(model, total_steps=1).__enter__()
        model(x)
        with pytest.raises(UserError, match=r"no penalty.. covers"):
            g.step()
        g.penalty()
        g.step()
        with pytest.raises(UserError, match=r"all total_steps = 1 are done"):
            g.step()


def test_copies_and_states_are_those_of_the_plain_network() -> None:
    model, (x, y) = net(), batch()
    names = list(model.state_dict())
    with sg.guard(model, total_steps=5) as g:
        twin = copy.deepcopy(model)
        assert list(model.state_dict()) == names
        twin(x)  # a copy is not guarded
        with pytest.raises(UserError, match="without a forward pass"):
            g.penalty()
        result = sg.audit(model, x, y, sg.Linf(0.1), effort="quick")
    assert all(not layer.requests for layer in spiking(twin).values())
    assert 0 <= result.robust_accuracy <= 1


def test_a_loop_of_the_users_own_learns_and_empties_the_band() -> None:
    x, _ = batch(1, 64)
    y = (x[:, 0] > x[:, 1]).long()
    hinges = []
    for lambda_max in (0.0, 2.0):
        model = net(seed=2)
        model.second[1] = nn.Identity()
        loader = DataLoader(TensorDataset(4 * x - 2, y), batch_size=32, shuffle=True)
        step = torch.optim.AdamW(model.parameters(), lr=0.02)
        with sg.guard(model, total_steps=40, lambda_max=lambda_max) as g:
            for _ in range(20):
                for a, b in loader:
                    step.zero_grad()
                    (F.cross_entropy(model(a), b) + g.penalty()).backward()
                    step.step()
                    g.step()
        model.eval()
        hinges.append(hinge(model, lambda: model(4 * x - 2)))  # noqa: B023
        assert float((model(4 * x - 2).argmax(1) == y).float().mean()) > 0.85
    assert hinges[1] < 0.8 * hinges[0]


def one_of_two(rank: int, folder: Path) -> None:
    """A process that trains one guarded network together with another one."""
    dist.init_process_group("gloo", f"file://{folder / 'meeting'}", timedelta(seconds=20), 2, rank)
    state, x, y = torch.load(folder / "start.pt")
    model = Net()
    model.second[1] = nn.Identity()
    model.load_state_dict(state)
    spread = nn.parallel.DistributedDataParallel(model)
    with sg.guard(spread, total_steps=2, steps_done=1, sigma=0.0, lambda_max=2.0) as g:
        (F.cross_entropy(spread(x.chunk(2)[rank]), y.chunk(2)[rank]) + g.penalty()).backward()
    torch.save(gradients(model), folder / f"gradients{rank}.pt")
    os._exit(0)


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_two_processes_give_the_gradients_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    model, (x, y) = net(), batch()
    model.second[1] = nn.Identity()
    torch.save([model.state_dict(), x, y], tmp_path / "start.pt")
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=one_of_two, args=(rank, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(30)
        process.kill()
    with sg.guard(model, total_steps=2, steps_done=1, sigma=0.0, lambda_max=2.0) as g:
        (F.cross_entropy(model(x), y) + g.penalty()).backward()
    assert [process.exitcode for process in ranks] == [0, 0]
    for rank in range(2):
        found = torch.load(tmp_path / f"gradients{rank}.pt")
        for a, b in zip(found, gradients(model), strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-7)
