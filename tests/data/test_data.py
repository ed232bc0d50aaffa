"""Readers, the embedded sample, batches: true bytes, or one clear line."""

import gzip
import importlib
import io
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st

from spikeguard.data import sample, sources
from spikeguard.data.batches import Placement, batches, crop_and_flip
from spikeguard.data.images import Images
from spikeguard.data.sources import DEBIAN, load_data
from spikeguard.errors import UserError


def official_cifar(folder: Path, name: str) -> None:
    """Write the official binary files from the packed copies in the shared folder."""
    sys.path.insert(0, str(SHARED))
    try:
        load = importlib.import_module("load")
    finally:
        sys.path.pop(0)
    read = getattr(load, name)
    for part in ("train", "test"):
        x, y = read(part)
        labels = [read(part, coarse=True)[1], y] if name == "cifar100" else [y]
        rows = np.concatenate(
            [*(np.asarray(v)[:, None] for v in labels), x.transpose(0, 3, 1, 2).reshape(len(x), -1)], 1
        ).astype(np.uint8)
        if name == "cifar100":
            (folder / f"{part}.bin").write_bytes(rows.tobytes())
        elif part == "test":
            (folder / "test_batch.bin").write_bytes(rows.tobytes())
        else:
            for k in range(5):
                (folder / f"data_batch_{k + 1}.bin").write_bytes(rows[k * 10000 : (k + 1) * 10000].tobytes())


def test_embedded_sample_is_balanced_and_small() -> None:
    data = load_data("embedded")
    assert (len(data.train), len(data.test), data.in_shape) == (10_000, 2_000, (1, 28, 28))
    assert data.train.y.bincount().tolist() == [1000] * 10
    assert data.test.y.bincount().tolist() == [200] * 10
    assert sample.PATH.stat().st_size < 6_000_000


def test_an_altered_or_truncated_sample_is_refused(tmp_path: Path) -> None:
    held = sample.PATH.read_bytes()
    for name, content in (("cut.xz", held[:-1000]), ("other.xz", held[:200_000] + b"x" + held[200_001:])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="reinstall spikeguard"):
            sample.read(tmp_path / name)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_sample_is_part_of_the_official_set() -> None:
    full, embedded = load_data("fashion-mnist"), load_data("embedded")
    assert (len(full.train), len(full.test)) == (60_000, 10_000)
    for part, each in (("train", 10_000), ("test", 2_000)):
        chosen = getattr(full, part).balanced(each)
        assert torch.equal(chosen.x, getattr(embedded, part).x)
        assert torch.equal(chosen.y, getattr(embedded, part).y)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not here")
@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_official_cifar_files_are_read_exactly(tmp_path: Path, name: str, classes: int) -> None:
    official_cifar(tmp_path, name)
    data = load_data(name, tmp_path)
    assert data.train.x.shape == (50_000, 3, 32, 32)
    assert data.train.y.bincount().tolist() == [50_000 // classes] * classes
    sys.path.insert(0, str(SHARED))
    load = importlib.import_module("load")

    sys.path.pop(0)
    x, y = getattr(load, name)("test")
    assert np.array_equal(data.test.x.permute(0, 2, 3, 1).numpy(), x)
    assert np.array_equal(data.test.y.numpy(), y)
    mean = data.train.x.double().mean((0, 2, 3)) / 255
    assert data.mean == pytest.approx(mean.tolist(), abs=1e-4)
    victim = tmp_path / next(iter(sources.SOURCES[name].test))
    victim.write_bytes(victim.read_bytes()[:-1])
    sources._load.cache_clear()
    with pytest.raises(UserError, match="truncated or altered"):
        load_data(name, tmp_path)


Files = dict[str, bytes]


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    """A data set of our own with two tiny files, so that looking.

    Checking and reading run without the real one.
    """
    import hashlib

    def content(count: int, seed: int) -> bytes:
        generator = np.random.default_rng(seed)
        rows = generator.integers(0, 256, (count, 3073), dtype=np.uint8)
        rows[:, 0] = np.arange(count) % 10
        return rows.tobytes()

    files = {"a.bin": content(20, 0), "b.bin": content(10, 1)}
    digest = {k: hashlib.sha256(v).hexdigest() for k, v in files.items()}
    source = sources.Source(
        {"a.bin": digest["a.bin"]},
        {"b.bin": digest["b.bin"]},
        sources._cifar(1),
        tuple("abcdefghij"),
        (0.5,) * 3,
        (0.2,) * 3,
        "",
        ("toy.tar.gz",),
        ("toy",),
    )
    monkeypatch.setattr(sources.DATA, "own", {**sources.DATA.own, "toy": source})
    sources._load.cache_clear()
    yield files
    sources._load.cache_clear()


def archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"toy/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("layout", ["plain", "subfolder", "gzip", "archive"])
@pytest.mark.parametrize("how", ["folder", "environment"])
def test_files_are_found_however_they_lie(
    toy: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, how: str
) -> None:
    if layout == "archive":
        (tmp_path / "toy.tar.gz").write_bytes(archive(toy))
    else:
        folder = tmp_path / "toy" if layout == "subfolder" else tmp_path
        folder.mkdir(exist_ok=True)
        for name, content in toy.items():
            (folder / (name + ".gz" * (layout == "gzip"))).write_bytes(
                gzip.compress(content) if layout == "gzip" else content
            )
    if how == "environment":
        monkeypatch.setenv("SPIKEGUARD_DATA", str(tmp_path))
    data = load_data("toy", tmp_path if how == "folder" else None)
    assert (len(data.train), len(data.test)) == (20, 10)
    assert data.train.y.tolist() == [i % 10 for i in range(20)]


def test_missing_altered_and_unknown_data_are_one_line(toy: Files, tmp_path: Path) -> None:
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: load_data("nope"), "unknown data set 'nope' (known: embedded"),
        (lambda: load_data("toy", tmp_path / "gone"), "does not exist"),
        (lambda: load_data("toy", tmp_path), "no a.bin in"),
    ]
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.bin").write_bytes(b"x" + toy["a.bin"][1:])
    cases.append((lambda: load_data("toy", tmp_path / "bad"), "wrong checksum of a.bin"))
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "toy.tar.gz").write_bytes(archive(toy)[:-2000])
    cases.append((lambda: load_data("toy", tmp_path / "cut"), "truncated or altered"))
    for call, message in cases:
        with pytest.raises(UserError) as error:
            call()
        assert message in str(error.value)
        assert "\n" not in str(error.value)


class Answer(io.BytesIO):
    def __init__(self, content: bytes, length: int) -> None:
        super().__init__(content)
        self.headers = {"Content-Length": str(length)}


def test_downloads_appear_whole_or_not_at_all(
    toy: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = archive(toy)
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Answer(whole[:500], len(whole)))
    with pytest.raises(UserError, match="broke off after 500"):
        load_data("toy", tmp_path, download=True)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Answer(whole, len(whole)))
    assert len(load_data("toy", tmp_path, download=True).train) == 20

    def unreachable(url: str, timeout: float) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    with pytest.raises(UserError, match="cannot download"):
        load_data("toy", tmp_path / "new", download=True)


def test_the_validation_split_is_stratified_disjoint_and_the_same_for_all() -> None:
    images = load_data("embedded").train
    training, held = images.split(0.1)
    assert (len(training), len(held)) == (9000, 1000)
    assert held.y.bincount().tolist() == [100] * 10
    assert not set(training.index.tolist()) & set(held.index.tolist())
    assert torch.equal(images.split(0.1)[1].index, held.index)


def test_unbalanced_requests_are_refused(images: Images) -> None:
    for count, message in ((7, "multiple of 10"), (30, "has only")):
        with pytest.raises(UserError, match=message):
            images.balanced(count)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.integers(0, 4), st.integers(0, 10**6))
def test_crop_and_flip_equals_a_loop(pad: int, seed: int) -> None:
    x = torch.randint(0, 256, (5, 3, 9, 7), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    got = crop_and_flip(x, torch.Generator().manual_seed(seed), pad)
    generator = torch.Generator().manual_seed(seed)
    down, right = torch.randint(0, 2 * pad + 1, (2, 5), generator=generator).tolist()
    mirrored = (torch.rand(5, generator=generator) < 0.5).tolist()
    for i in range(5):
        padded = torch.zeros(3, 9 + 2 * pad, 7 + 2 * pad, dtype=torch.uint8)
        padded[:, pad : pad + 9, pad : pad + 7] = x[i]
        cropped = padded[:, down[i] : down[i] + 9, right[i] : right[i] + 7]
        assert torch.equal(got[i], cropped.flip(2) if mirrored[i] else cropped)


def test_a_placement_is_undone_where_the_image_shows() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randint(0, 256, (6, 3, 9, 7), generator=generator, dtype=torch.uint8)
    placement = Placement.draw(6, generator, x.device, pad=3)
    placed = placement.apply(x)
    assert torch.equal(placement.put_back(placed, x), x)
    shown = placement.put_back(torch.ones_like(placed), torch.zeros_like(x))
    back = placement.put_back(placed, torch.zeros_like(x))
    assert torch.equal(back, x * shown)
    assert 0 < float(shown.float().mean()) < 1


def test_batches_are_a_function_of_seed_and_epoch_and_can_start_anywhere(images: Images) -> None:
    whole = list(batches(images, 4, epoch=1, seed=0, augment=True))
    assert len(whole) == 3
    late = list(batches(images, 4, epoch=1, seed=0, augment=True, start=2))
    assert torch.equal(whole[2][0], late[0][0])
    assert not torch.equal(whole[0][0], next(iter(batches(images, 4, epoch=2, seed=0, augment=True)))[0])
    assert 0 <= whole[0][0].min() <= whole[0][0].max() <= 1
    seen = torch.cat([y for _, y in batches(images, 4, epoch=0, seed=3, augment=False)])
    assert seen.sort().values.tolist() == images.y.sort().values.tolist()


def test_images_keep_their_official_numbers() -> None:
    images = Images.of(torch.zeros(6, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 0, 1, 0, 1]))
    assert images.balanced(4).index.tolist() == [0, 1, 2, 3]
    assert images.select(torch.tensor([5, 2])).index.tolist() == [5, 2]
