"""Networks of the user's own on disk: ``sg.load`` builds what ``sg.save`` wrote, and runs nothing else."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.errors import UserError
from spikeguard.neurons import Noise, spiking

CALLED: list[str] = []
HERE = __name__


class Own(nn.Module):
    """A spiking network in plain torch."""

    def __init__(self, width: int = 5, sigma: float = 0.0) -> None:
        super().__init__()
        noise = Noise(sigma) if sigma else None
        self.body = nn.Sequential(nn.Linear(4, width), sg.LIF(decay=0.5, noise=noise), sg.PLIF(noise=noise))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x.expand(3, *x.shape)).mean(0))
        return logits


def make(width: int) -> Own:
    return Own(width)


def unannotated(width: int):  # type: ignore[no-untyped-def]
    CALLED.append("unannotated")
    return Own(width)


def returns_text(width: int) -> str:
    CALLED.append("returns_text")
    return "x"


def fails(width: int) -> Own:
    raise ValueError("two\nlines")


def lies(width: int) -> nn.Module:
    return width  # type: ignore[return-value]


def test_a_network_of_ones_own_comes_back_from_its_class_or_a_function(tmp_path: Path) -> None:
    x = torch.rand(6, 4)
    model = Own(7)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3)
    for name in ("Own", "make"):
        path = tmp_path / f"{name}.safetensors"
        sg.save(model, path, factory=f"{HERE}:{name}", width=7)
        loaded = sg.load(path)
        assert isinstance(loaded, Own)
        assert not loaded.training
        assert torch.equal(loaded(x), model.eval()(x))
        assert [path.name for path in tmp_path.iterdir()].count(path.name) == 1
    noisy = tmp_path / "noisy.safetensors"
    sg.save(model, noisy, factory=f"{HERE}:Own", width=7, sigma=0.2)
    assert all(layer.noise == Noise(0.2) for layer in spiking(sg.load(noisy)).values())


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    sg.save(model[0], tmp_path / "a.safetensors", factory="torch.nn:Linear", in_features=3, out_features=3)
    assert sg.load(tmp_path / "a.safetensors").weight.shape == (3, 3)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("no_such_module:make", "cannot import 'no_such_module'"),
        (f"{HERE}:maek", "has no function 'maek'; did you mean 'make'?"),
        (HERE, "must be package.module:function"),
        (f"{HERE}:unannotated", "whose signature says that it returns one"),
        (f"{HERE}:returns_text", "whose signature says that it returns one"),
        ("subprocess:run", "whose signature says that it returns one"),
        (f"{HERE}:fails", r"fails\(width=5\) fails \(ValueError: two\)"),
        (f"{HERE}:lies", "returned a int, must return a network"),
    ],
)
def test_a_factory_that_cannot_be_used_is_refused_in_one_line(
    factory: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "own.safetensors"
    CALLED.clear()
    with pytest.raises(UserError, match=message) as error:
        sg.save(Own(5), path, factory=factory, width=5)
    assert "\n" not in str(error.value)
    assert not path.exists()
    metadata = {"factory": json.dumps({"function": factory, "arguments": {"width": 5}})}
    save_file(Own(5).state_dict(), path, metadata)  # a stranger's file
    with pytest.raises(UserError, match=message):
        sg.load(path)
    assert not CALLED, "nothing is called that does not say that it returns a network"


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    for width, message in ((6, "has shape"), ([1], "fails")):
        with pytest.raises(UserError, match=message):
            sg.save(Own(5), path, factory=f"{HERE}:Own", width=width)
    with pytest.raises(UserError, match="has no place in a record"):
        sg.save(Own(5), path, factory=f"{HERE}:Own", width={1})
    metadata = {"factory": json.dumps({"function": f"{HERE}:Own", "arguments": {"width": 6}})}
    save_file(Own(5).state_dict(), path, metadata)
    with pytest.raises(UserError, match="has shape"):
        sg.load(path)
    save_file(Own(5).state_dict(), path, {"factory": json.dumps({"arguments": 3})})
    with pytest.raises(UserError, match="factory"):
        sg.load(path)
