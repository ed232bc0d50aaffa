"""Cases from public threads of other libraries, in our own words: what users handed in, and what is right.

Each docstring names the repository and the number of the issue or pull request.
"""

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from narrow import as_a
from strangers import ATTACKS, LINF, X, Y, net, pgd, refused
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import spikeguard as sg
from spikeguard.attacks.loop import Attacked
from spikeguard.errors import SpikeguardWarning

NET = net()
PLAIN = pgd(NET)


def test_a_forward_that_returns_a_pair() -> None:
    """fra31/auto-attack #83: logits in the first place of a tuple."""
    assert torch.equal(pgd(lambda x: (NET(x), {"aux": None})), PLAIN)


@pytest.mark.parametrize("attack", [sg.apgd, sg.apgd_targeted, sg.square])
def test_half_precision_finds_what_full_precision_finds(attack: Callable[..., Attacked]) -> None:
    """fra31/auto-attack #51: float16 for speed, with the numbers of float32."""
    x = X.half()
    settings = {"queries": 20} if attack is sg.square else {"steps": 4}
    low = attack(net().half(), x, Y, sg.Linf(0.05), **settings)
    full = attack(NET, x.float(), Y, sg.Linf(0.05), **settings)
    assert int((low.broken != full.broken).sum()) <= 1


@pytest.mark.parametrize("attack", ATTACKS)
def test_images_that_are_all_wrong_at_the_start(attack: str) -> None:
    """fra31/auto-attack #81: nothing is left to attack in a small batch."""
    found = ATTACKS[attack](NET, X, (Y + 1) % 4)
    assert bool(found.broken.all())
    assert torch.equal(found.x, X)


@pytest.mark.parametrize("attack", ATTACKS)
def test_images_that_drop_out_on_the_way(attack: str) -> None:
    """Harry24k/adversarial-attacks-pytorch #59: as many results as images, whichever broke early."""
    y = torch.where(torch.arange(12) % 2 == 0, Y, (Y + 1) % 4)
    found = ATTACKS[attack](NET, X, y)
    assert found.x.shape == X.shape
    assert found.broken.shape == found.when.shape == y.shape
    assert bool(found.broken[1::2].all())


def test_arrays_where_tensors_are_usual() -> None:
    """Harry24k/adversarial-attacks-pytorch #87: which type are images and labels?"""
    assert torch.equal(pgd(NET, X.numpy(), Y.numpy()), PLAIN)


def test_a_transformer_that_answers_with_an_output_object() -> None:
    """Harry24k/adversarial-attacks-pytorch #193, bethgelab/foolbox #736: an ordered mapping with .logits."""

    class Output(OrderedDict[str, Any]):
        @property
        def logits(self) -> Any:
            return self["logits"]

    assert torch.equal(pgd(lambda x: Output(loss=None, logits=NET(x), hidden_states=x)), PLAIN)
    assert torch.equal(pgd(lambda x: SimpleNamespace(loss=None, logits=NET(x))), PLAIN)


def test_a_dictionary_with_logits() -> None:
    """Harry24k/adversarial-attacks-pytorch #201: the answer is a dict that holds 'logits' among others."""
    assert torch.equal(pgd(lambda x: {"logits": NET(x), "features": x.flatten(1)}), PLAIN)


def test_scores_without_a_class_dimension() -> None:
    """Harry24k/adversarial-attacks-pytorch #155: one score an image, as of a matching model."""
    for attack in ATTACKS.values():
        refused(partial(attack, lambda x: NET(x)[:, 0], X, Y), "shape (8,)", "[N, classes]")


def test_images_that_are_part_of_a_graph() -> None:
    """Harry24k/adversarial-attacks-pytorch #2: requires_grad cannot be set on what is no leaf."""
    images = X.clone().requires_grad_() * 1.0
    assert torch.equal(pgd(NET, images), PLAIN)


def test_a_pair_of_images_and_labels_as_images() -> None:
    """Trusted-AI/adversarial-robustness-toolbox #252: a tuple arrives where an array belongs."""
    refused(lambda: pgd(NET, (X, Y)), "images are", "a tensor or an array")


def test_double_images_for_a_float_network() -> None:
    """Trusted-AI/adversarial-robustness-toolbox #933: numpy's default type meets float weights."""
    assert torch.equal(pgd(NET, X.numpy().astype(np.float64)), PLAIN)
    assert torch.equal(pgd(NET, X.double()), PLAIN)


def test_an_attack_inside_no_grad() -> None:
    """Trusted-AI/adversarial-robustness-toolbox #498: the evaluation loop is in a no_grad block."""
    with torch.no_grad():
        assert torch.equal(pgd(NET), PLAIN)


def test_an_attack_inside_a_loop_that_evaluates() -> None:
    """BorealisAI/advertorch #79: attack, then score, both without gradients, as a test loop does it."""
    with torch.no_grad():
        found = sg.pgd(NET, X, Y, LINF, steps=3, restarts=1)
        assert torch.equal(NET(found.x).argmax(1) != Y, found.broken)


def test_labels_that_are_one_hot() -> None:
    """Trusted-AI/adversarial-robustness-toolbox #2230: one format assumed, the other passed."""
    refused(lambda: pgd(NET, y=np.eye(4)[Y.numpy()]), "one-hot", "argmax")


def test_labels_of_two_classes_in_a_column() -> None:
    """Trusted-AI/adversarial-robustness-toolbox #1334: [N, 1] where two classes need no more."""
    two = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    refused(lambda: pgd(two, y=(Y % 2)[:, None]), "shape (12, 1)", "integers of shape [12]")


def test_labels_of_32_bits() -> None:
    """bethgelab/foolbox #241: cross-entropy wants 64 bits, arrays often hold 32."""
    assert torch.equal(pgd(NET, y=Y.numpy().astype(np.int32)), PLAIN)


def test_labels_as_floats() -> None:
    """bethgelab/foolbox #701: torch.Tensor(labels) makes floats, and the loss has no kernel for them."""
    refused(lambda: pgd(NET, y=torch.Tensor(Y.tolist())), "labels are torch.float32", "integers")


def test_images_normalized_before_the_model() -> None:
    """bethgelab/foolbox #703: pixels between -3 and 3."""
    refused(lambda: pgd(NET, (X - 0.5) * 6), "normalize inside the model")


def test_images_up_to_255() -> None:
    """bethgelab/foolbox #153 and #367: bounds of bytes on images of floats."""
    refused(lambda: pgd(NET, (X * 255).round()), "divide by 255")


def test_channels_last() -> None:
    """bethgelab/foolbox #153: [N, H, W, C] where [N, C, H, W] is wanted."""
    conv = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten())
    refused(lambda: pgd(conv, torch.rand(12, 8, 8, 3)), "shape (8, 8, 8, 3)", "3 channels")


def test_a_model_without_a_gradient() -> None:
    """bethgelab/foolbox #242: element 0 of tensors does not require grad."""

    def model(x: Tensor) -> Tensor:
        return as_a(Tensor, NET(torch.as_tensor(x.detach().numpy())))

    refused(lambda: pgd(model), "no gradient reaches the input")


def test_a_model_made_for_one_image() -> None:
    """bethgelab/foolbox #272: the first dimension is squeezed, or has to be 1."""
    refused(lambda: pgd(lambda x: NET(x.reshape(1, 1, 8, 8))), "the model fails on", "any number of images")


def test_arrays_of_a_loader() -> None:
    """bethgelab/foolbox #516: a batch goes to numpy and back before the attack."""
    batch = X.detach().cpu().reshape(12, 1, 8, 8).numpy(), Y.detach().cpu().numpy()
    assert torch.equal(pgd(NET, *batch), PLAIN)


def test_tensors_wrapped_by_another_library() -> None:
    """bethgelab/foolbox #525: a wrapper's object instead of a tensor."""
    wrapped = SimpleNamespace(raw=X, shape=tuple(X.shape), dtype=X.dtype)
    refused(lambda: pgd(NET, wrapped), "images are", "a tensor or an array")


def test_a_list_of_budgets() -> None:
    """bethgelab/foolbox #353: epsilons as a list, as that library takes them."""
    refused(lambda: pgd(NET, threat=[0.01, 0.03]), "threat = [0.01, 0.03]", "sg.Linf(8 / 255)")


def test_a_model_that_squeezes_after_pooling() -> None:
    """bethgelab/foolbox #80: means over space, and a squeeze that also takes a batch of one."""
    refused(lambda: pgd(lambda x: NET(x).squeeze(), X[:1], Y[:1]), "shape (4,) for 1 images")


def test_models_in_double_precision() -> None:
    """cleverhans-lab/cleverhans #1224: images were cast to float on the way into a double network."""
    double = net().double()
    found = sg.pgd(double, X.double(), Y, LINF, steps=3, restarts=1)
    assert found.x.dtype == torch.float64
    assert torch.equal(found.broken, PLAIN)


def test_a_detector_that_answers_with_losses() -> None:
    """BorealisAI/advertorch #89: boxes, scores and losses, no logits."""
    detector = lambda x: [{"boxes": torch.rand(3, 4), "scores": torch.rand(3)} for _ in x]  # noqa: E731
    refused(lambda: pgd(detector), "a list of (dict")


class Leaky(nn.Module):
    """A neuron whose potential nobody resets; ``detached``: it forgets its graph."""

    def __init__(self, detached: bool) -> None:
        super().__init__()
        self.linear, self.detached = NET, detached
        self.v: Tensor | float = 0.0

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.v + (self.linear(x) - self.v) / 2.0
        self.v = out.detach() if self.detached else out
        return out


def test_potentials_of_another_batch() -> None:
    """fangwei123456/spikingjelly #369 and #611, synsense/sinabs #75: the last batch is smaller."""
    with pytest.warns(SpikeguardWarning, match=r"carries state.*sg\.wrap\(model, reset=f\)"):
        refused(lambda: pgd(Leaky(True)), "the model fails on", "keep no state between calls")


def test_potentials_that_keep_their_graph() -> None:
    """fangwei123456/spikingjelly #420: nobody called reset, so a second ``backward()`` fails.

    Attacks differentiate with respect to the images only, which lie behind the last forward pass alone, and
    say that the model carries state; with a reset, graphs of two calls do not meet.
    """
    net = Leaky(False)
    with pytest.warns(SpikeguardWarning, match="carries state.*clears v"):
        sg.bim(net, X[:8], Y[:8], LINF, steps=3)
    net.v = 0.0
    found = sg.bim(sg.wrap(net, reset=lambda m: setattr(m, "v", 0.0), sample=X), X[:8], Y[:8], LINF, steps=3)
    assert found.x.shape == X[:8].shape
    assert NET[1].weight.grad is None


def test_layers_that_return_their_state() -> None:
    """norse/norse #95: in a plain Sequential the next layer gets a tuple."""
    State = namedtuple("State", "v i")

    class Cell(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, State]:
            return x.clamp(min=0), State(x, x)

    refused(lambda: pgd(nn.Sequential(NET, Cell(), nn.Linear(4, 4))), "TypeError")
    assert torch.equal(pgd(nn.Sequential(NET, Cell())), pgd(lambda x: NET(x).clamp(min=0)))


def test_an_encoder_without_a_gradient() -> None:
    """norse/norse #264: images become random spikes before the network."""
    refused(lambda: pgd(lambda x: NET((torch.rand_like(x) < x).float())), "no gradient reaches the input")


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_checkpoint_of_a_sequence() -> None:
    """pytorch/pytorch #51743 and #65537: inputs= is no way through a re-entrant checkpoint."""
    first = nn.Sequential(nn.Flatten(), NET[1])
    for model in (
        lambda x: checkpoint(first, x, use_reentrant=True),
        lambda x: checkpoint_sequential(first, 2, x, use_reentrant=True),
    ):
        assert torch.equal(pgd(model), PLAIN)
    assert NET[1].weight.grad is None


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_counts_as_broken_is_broken(attack: str) -> None:
    """RobustBench/robustbench #7: the attack's own count and a count made afterwards differ."""
    found = ATTACKS[attack](NET, X, Y)
    assert torch.equal(NET(found.x).argmax(1) != Y, found.broken)
