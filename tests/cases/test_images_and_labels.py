"""Images and labels of other types, shapes and ranges: taken where there is no doubt, else one line."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from narrow import wrong
from strangers import ATTACKS, LINF, X, Y, net, pgd, refused
from torch.utils.data import DataLoader, TensorDataset

import spikeguard as sg
from spikeguard.errors import SpikeguardWarning

NET = net()
PLAIN = pgd(NET)
WIDTHS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64)
LABELS = {
    **{str(kind): Y.to(kind) for kind in WIDTHS},
    "a list": Y.tolist(),
    "a tuple": tuple(Y.tolist()),
    "an array": Y.numpy(),
    "an array of bytes": Y.numpy().astype(np.uint8),
    "an array of the other byte order": Y.numpy().astype(">i4"),
    "a list of tensors": list(Y),
    "a read-only array": np.broadcast_to(Y.numpy(), (12,)),
}
IMAGES = {
    "an array": X.numpy(),
    "an array of doubles": X.numpy().astype(np.float64),
    "doubles": X.double(),
    "a view with negative strides": X.numpy()[:, :, ::-1][:, :, ::-1],
    "a parameter": torch.nn.Parameter(X),
    "part of a graph": X.clone().requires_grad_() * 1.0,
    "a list of tensors": list(X),
    "a tuple of arrays": tuple(X.numpy()),
    "not contiguous": X.transpose(2, 3).contiguous().transpose(2, 3),
}


@pytest.mark.parametrize("name", LABELS)
def test_integer_labels_of_any_width_give_the_same_numbers(name: str) -> None:
    assert torch.equal(pgd(NET, y=LABELS[name]), PLAIN)


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_attack_takes_bytes_as_labels_and_arrays_as_images(attack: str) -> None:
    found = ATTACKS[attack](NET, X.numpy(), Y.numpy().astype(np.uint8))
    assert torch.equal(found.x, ATTACKS[attack](NET, X, Y).x)


@pytest.mark.parametrize("name", IMAGES)
def test_images_as_they_come_give_the_same_numbers(name: str) -> None:
    assert torch.equal(pgd(NET, x=IMAGES[name]), PLAIN)


def test_an_audit_takes_arrays_and_images_that_need_a_gradient(tmp_path: Path, short_suite: None) -> None:
    plain = sg.audit(NET, X, Y, LINF, effort="quick")
    array = sg.audit(NET, wrong(X.numpy()), wrong(Y.numpy().astype(np.int16)), LINF, effort="quick")
    leaf = X.clone().requires_grad_()
    graph = sg.audit(NET, leaf, Y.tolist(), LINF, effort="quick", out=tmp_path)
    assert array.record.first_by == graph.record.first_by == plain.record.first_by
    assert array.record.digests == graph.record.digests == plain.record.digests
    assert leaf.requires_grad
    assert leaf.grad is None


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16], ids=str)
def test_images_of_half_precision_for_a_float32_network_are_converted(kind: torch.dtype) -> None:
    x = X.to(kind)
    assert torch.equal(
        sg.pgd(NET, x, Y, LINF, steps=3, restarts=1).x, sg.pgd(NET, x.float(), Y, LINF, steps=3, restarts=1).x
    )


@pytest.mark.parametrize("name", ["square", "random_search", "block_search"])
def test_searches_by_patches_name_the_shape_alone(name: str) -> None:
    events = torch.rand(12, 2, 1, 4, 8)
    line = refused(
        lambda: sg.attacks.ATTACKS[name].function(NET, events, Y, LINF), "(12, 2, 1, 4, 8)", "[N, C, H, W]"
    )
    assert "queries" not in line


@pytest.mark.parametrize("pixel", [1.0000001, -3e-8])
def test_a_last_bit_outside_is_clamped_with_a_word(pixel: float) -> None:
    x = X.clone()
    x[0, 0, 0, 2] = pixel
    with pytest.warns(SpikeguardWarning, match=r"images lie \S+e-0\d outside of \[0, 1\]: clamped"):
        found = sg.pgd(NET, x, Y, LINF, steps=2)
    assert float(found.x.min()) >= 0
    assert float(found.x.max()) <= 1


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (X.clone().sub(0.02), ("outside of it", "clamp")),
        (X * 1.001 + 1e-4, ("outside of it", "clamp")),
        (X - 0.5, ("normalize inside the model",)),
        (X * 255, ("divide by 255",)),
        ((X * 255).byte(), ("torch.uint8", "/ 255")),
        ((X * 255).byte().numpy(), ("torch.uint8", "/ 255")),
        (X.long(), ("torch.int64", "pass floats")),
        (X > 0.5, ("torch.bool", "pass floats")),
        (X.to(torch.complex64), ("torch.complex64",)),
        (X.tolist(), ("list", "a tensor or an array")),
        (X.numpy().astype(object), ("array", "object")),
        (None, ("None",)),
        ("images.png", ("images.png",)),
        (X[0, 0, 0], ("shape (8,)",)),
        (X[:0], ("N >= 1",)),
        (X[:, :0], ("N >= 1",)),
        (X.to_sparse(), ("sparse",)),
        (X.to("meta"), ("meta",)),
        (X.masked_fill(X > 0.9, float("nan")), ("not finite",)),
        (X.masked_fill(X > 0.9, float("inf")), ("not finite",)),
    ],
)
def test_other_images_are_refused_in_one_line(images: object, words: tuple[str, ...]) -> None:
    refused(lambda: pgd(NET, x=images), *words)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.nn.functional.one_hot(Y, 4), ("one-hot", "y.argmax(1)")),
        (torch.nn.functional.one_hot(Y, 4).float(), ("one-hot", "y.argmax(1)")),
        (Y[:, None], ("shape (12, 1)", "integers of shape [12]")),
        (Y.float(), ("torch.float32", "integers")),
        (Y.float().tolist(), ("torch.float64", "integers")),
        (Y > 1, ("torch.bool",)),
        (Y[:5], ("shape (5,)", "[12]")),
        (int(Y[0]), ("integers of shape [12]",)),
        (["cat"] * 12, ("labels are",)),
        ([[1], [2, 3]], ("labels are",)),
        ({0: 1}, ("labels are",)),
        (Y + 9, ("labels lie in", "classes 0 to 3")),
        (Y - 1, ("labels lie in [-1",)),
        (None, ("labels are None",)),
    ],
)
def test_other_labels_are_refused_in_one_line(labels: object, words: tuple[str, ...]) -> None:
    if isinstance(labels, torch.Tensor) and labels.dtype == torch.int64 and labels.dim() == 1:
        labels = labels if int(labels.min()) < 0 or len(labels) < 12 or int(labels.max()) > 3 else labels - 1
    refused(lambda: pgd(NET, y=labels), *words)


@pytest.mark.parametrize("index", [torch.arange(3), torch.rand(12), "x", [1.5] * 12, torch.ones(12) > 0])
def test_numbers_of_samples_are_integers_one_each(index: Any) -> None:
    refused(lambda: sg.pgd(NET, X, Y, LINF, steps=1, index=index), "index")


def test_numbers_of_samples_are_taken_from_lists_and_arrays() -> None:
    plain = sg.pgd(NET, X, Y, LINF, steps=1, index=torch.arange(5, 17))
    for index in (list(range(5, 17)), np.arange(5, 17, dtype=np.int16)):
        assert torch.equal(sg.pgd(NET, X, Y, LINF, steps=1, index=wrong(index)).x, plain.x)


def test_points_to_start_at_lie_in_the_budget() -> None:
    start = (X + 0.02).clamp(0, 1)
    assert torch.equal(
        sg.pgd(NET, X, Y, LINF, steps=2, restarts=1, first=start).x,
        sg.pgd(NET, X, Y, LINF, steps=2, restarts=1, first=wrong(start.numpy())).x,
    )
    for name in ("pgd", "apgd", "sapgd"):
        attack = partial(getattr(sg, name), NET, X, Y, LINF, steps=1)
        refused(partial(attack, first=X + 9), "images lie in")
        refused(partial(attack, first=1 - X), "first lies", "outside")
        refused(partial(attack, first=X[:3]), "first has shape")


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (DataLoader(TensorDataset(X, Y)), "next(iter(loader))"),
        (TensorDataset(X, Y), "next(iter(loader))"),
        ([X[0], X[1, :, :4]], "a tensor or an array"),
        (np.ma.masked_array(X.numpy(), X.numpy() > 0.5), "masked"),
        (torch.nested.nested_tensor(list(X), layout=torch.jagged), "nested"),
        (iter(X), "must be floats"),
    ],
)
def test_what_holds_images_but_is_none_is_refused(x: object, words: str) -> None:
    refused(lambda: pgd(NET, x=x), "images are", words)


def test_images_divided_by_255_twice_are_worth_a_warning() -> None:
    with pytest.warns(SpikeguardWarning, match="divided by 255 twice"):
        pgd(NET, x=X / 255)


def test_channels_that_come_last_are_named_where_the_model_fails() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 1, 3), torch.nn.Flatten()).eval()
    refused(lambda: pgd(model, x=torch.rand(12, 8, 8, 3)), "x.permute(0, 3, 1, 2)")
