"""Images of the user's own: folders of pictures, arrays, and what is refused in one line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import spikeguard as sg
from spikeguard.data import own

RNG = np.random.default_rng(0)
Make = Callable[[Path], Path]


def pictures(folder: Path, counts: dict[str, int], size: tuple[int, int] = (6, 5), channels: int = 3) -> Path:
    """Random pictures in one folder a class."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for k in range(count):
            shape = (*size, channels) if channels > 1 else size
            Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8)).save(folder / name / f"{k}.png")
    return folder


def test_a_folder_of_pictures_has_a_class_for_each_folder_in_order(tmp_path: Path) -> None:
    pictures(tmp_path, {"cat": 2, "ant": 3})
    (tmp_path / "ant" / "notes.txt").write_text("no picture")
    data = sg.load_data(str(tmp_path))
    assert data.classes == ("ant", "cat")
    assert data.test.y.tolist() == [0, 0, 0, 1, 1]
    assert (data.in_shape, len(data.train), len(data.test)) == ((3, 6, 5), 0, 5)
    first = np.asarray(Image.open(tmp_path / "cat" / "1.png"))
    assert np.array_equal(data.test.x[4].permute(1, 2, 0).numpy(), first)


def test_gray_pictures_have_one_channel_and_parts_are_kept_apart(tmp_path: Path) -> None:
    pictures(tmp_path / "train", {"a": 4, "b": 4}, channels=1)
    pictures(tmp_path / "test", {"a": 2, "b": 2}, channels=1)
    data = sg.load_data(str(tmp_path))
    assert (data.in_shape, len(data.train), len(data.test)) == ((1, 6, 5), 8, 4)
    assert data.mean[0] == pytest.approx(float(data.train.pixels().mean()), abs=1e-6)


SHAPES = {
    "NCHW": ((6, 3, 8, 7), (3, 8, 7)),
    "NHWC": ((6, 8, 7, 3), (3, 8, 7)),
    "gray": ((6, 8, 7), (1, 8, 7)),
    "events": ((6, 5, 2, 8, 8), (5, 2, 8, 8)),
}


@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("names", [("x", "y"), ("images", "labels")])
def test_arrays_of_every_layout(tmp_path: Path, name: str, names: tuple[str, str], floats: bool) -> None:
    shape, expected = SHAPES[name]
    x = RNG.random(shape) if floats else RNG.integers(0, 256, shape, dtype=np.uint8)
    y = np.arange(6, dtype=np.uint8) % 3
    np.savez(tmp_path / "data.npz", **{names[0]: x, names[1]: y, "other": np.zeros(1)})  # type: ignore[arg-type]
    data = sg.load_data(str(tmp_path / "data.npz"))
    assert data.in_shape == expected
    assert data.test.y.tolist() == [0, 1, 2] * 2
    assert data.classes == ("class 0", "class 1", "class 2")
    pixels = data.test.pixels().numpy()
    if name == "NHWC":
        pixels = pixels.transpose(0, 2, 3, 1)
    np.testing.assert_allclose(pixels.reshape(shape), x if floats else x / 255, rtol=1e-6)


def test_npy_files_in_a_folder(tmp_path: Path) -> None:
    for part, count in (("train", 8), ("test", 4)):
        np.save(tmp_path / f"x_{part}.npy", RNG.random((count, 1, 5, 5)))
        np.save(tmp_path / f"y_{part}.npy", np.arange(count) % 2)
    data = sg.load_data(str(tmp_path))
    assert (len(data.train), len(data.test), data.in_shape) == (8, 4, (1, 5, 5))


def test_the_digest_is_of_the_images(tmp_path: Path) -> None:
    x, y = RNG.random((4, 1, 5, 5)), np.arange(4) % 2
    digests = set[str | None]()
    for number, (a, b) in enumerate([(x, y), (x, 1 - y), (1 - x, y), (x, y)]):
        np.savez(tmp_path / f"{number}.npz", x=a, y=b)
        digests.add(sg.load_data(str(tmp_path / f"{number}.npz")).digest)
    assert len(digests) == 3
    assert sg.load_data("embedded").digest is None


def test_few_and_unbalanced_images_are_taken_as_evenly_as_they_allow(tmp_path: Path) -> None:
    data = sg.load_data(str(pictures(tmp_path, {"a": 5, "b": 1, "c": 3})))
    assert data.test.at_most(5).y.tolist() == [0, 0, 1, 2, 2]
    assert data.test.at_most(100).y.tolist() == [0] * 5 + [1] + [2] * 3
    rows = data.test.at_most(5).index
    assert torch.equal(data.test.x[rows], data.test.at_most(5).x)


def saved(**arrays: np.ndarray) -> Make:
    def make(folder: Path) -> Path:
        np.savez(folder / "data.npz", **arrays)  # type: ignore[arg-type]
        return folder / "data.npz"

    return make


def other_size(folder: Path) -> Path:
    pictures(folder, {"a": 2})
    return pictures(folder / "b", {}) and pictures(folder, {"b": 1}, size=(6, 7))


def no_picture(folder: Path) -> Path:
    pictures(folder, {"a": 1})
    (folder / "a" / "z.png").write_bytes(b"no png")
    return folder


def truncated(folder: Path) -> Path:
    pictures(folder, {"a": 1}, size=(60, 50))
    whole = (folder / "a" / "0.png").read_bytes()
    (folder / "a" / "0.png").write_bytes(whole[: len(whole) // 2])
    return folder


def torchvisions(folder: Path) -> Path:
    for name in ("data_batch_1", "batches.meta"):
        (folder / name).write_bytes(b"\x80\x02}")
    return folder


def no_npz(folder: Path) -> Path:
    (folder / "a.npz").write_bytes(b"no")
    return folder / "a.npz"


X, Y = RNG.random((4, 1, 5, 5)), np.arange(4)
WRONG: dict[str, tuple[Make, str]] = {
    "nothing there": (lambda f: f / "no" / "where", "no data at"),
    "empty folder": (lambda f: f, "must hold one folder of images a class"),
    "empty class": (lambda f: pictures(f, {"a": 1, "b": 0}), "holds no images"),
    "another size": (other_size, "all images must have one size"),
    "no picture": (no_picture, "cannot be read as an image"),
    "truncated": (truncated, "cannot be read"),
    "train only": (lambda f: pictures(f / "train", {"a": 1}).parent, "must have both train and test"),
    "CIFAR as pickles": (torchvisions, "use --data cifar10"),
    "no labels": (saved(x=X), "must hold x and y"),
    "two kinds": (saved(x=X, y=Y, images=X), "both hold test x"),
    "objects": (saved(x=np.array([{}, {}], dtype=object), y=Y), "nothing is unpickled"),
    "counts": (saved(x=np.zeros((4, 1, 5, 5), np.int64), y=Y), "must be uint8 or floats in [0, 1]"),
    "bytes as floats": (saved(x=255 * X, y=Y), "floats must lie in [0, 1]"),
    "not a number": (saved(x=np.full((4, 1, 5, 5), np.nan), y=Y), "floats must lie in [0, 1]"),
    "doubtful channels": (saved(x=RNG.random((4, 3, 5, 3)), y=Y), "is in doubt"),
    "flat": (saved(x=RNG.random((4, 9)), y=Y), "must be [N, C, H, W]"),
    "other labels": (saved(x=X, y=Y[:3]), "4, but 3 labels"),
    "one-hot": (saved(x=X, y=np.eye(4)), "one whole number an image"),
    "negative": (saved(x=X, y=Y - 1), "must be at least 0"),
    "no npz": (no_npz, "cannot be read"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_read_is_named_in_one_line(tmp_path: Path, name: str) -> None:
    make, words = WRONG[name]
    path = make(tmp_path)
    with pytest.raises(sg.UserError) as error:
        sg.load_data(str(path))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_an_archive_that_unpacks_to_too_much_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "MOST", 500)
    np.savez_compressed(tmp_path / "big.npz", x=np.zeros((99, 1, 9, 9), np.uint8), y=np.zeros(99, np.uint8))
    with pytest.raises(sg.UserError, match=r"big.npz unpacks to more than"):
        sg.load_data(str(tmp_path / "big.npz"))


def test_training_needs_training_images(tmp_path: Path) -> None:
    recipe = sg.Recipe(data=str(saved(x=X, y=Y)(tmp_path)), epochs=1, batch_size=2)
    with pytest.raises(sg.UserError, match="has test images only"):
        sg.train(recipe)
    events = RNG.random((4, 3, 2, 5, 5))
    path = saved(x_train=events, y_train=Y, x_test=events, y_test=Y)(tmp_path)
    with pytest.raises(sg.UserError, match=r"shape \(3, 2, 5, 5\), must have \(C, H, W\)"):
        sg.train(sg.Recipe(data=str(path), epochs=1, batch_size=2))
