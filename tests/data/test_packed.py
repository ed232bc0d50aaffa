"""Official files rebuilt from pictures, byte for byte."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED
from PIL import Image

from spikeguard.data import packed, sources
from spikeguard.data.packed import Packed
from spikeguard.data.sources import load_data
from spikeguard.errors import UserError


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> np.ndarray:
    """Two pictures of four 32x32 images and their labels in a folder; the official rows of all eight."""
    monkeypatch.setattr(packed, "GRID", 2)
    generator = np.random.default_rng(0)
    made = generator.integers(0, 256, (8, 3074), dtype=np.uint8)
    for k in range(2):
        picture = np.zeros((64, 64, 3), np.uint8)
        for i, row in enumerate(made[4 * k : 4 * k + 4]):
            down, right = 32 * (i // 2), 32 * (i % 2)
            picture[down : down + 32, right : right + 32] = row[2:].reshape(3, 32, 32).transpose(1, 2, 0)
        Image.fromarray(picture).save(tmp_path / f"part_{k}.webp", lossless=True, exact=True)
    np.savez(tmp_path / "labels.npz", coarse=made[:, 0], fine=made[:, 1])
    return made


def test_pictures_and_labels_give_the_official_bytes(rows: np.ndarray, tmp_path: Path) -> None:
    whole = Packed(("part_0.webp", "part_1.webp"), ("coarse", "fine"))
    assert whole.lies_in(tmp_path)
    assert whole.content(tmp_path) == rows.tobytes()
    second = Packed(("part_1.webp",), ("fine",), first=4)
    assert second.content(tmp_path) == rows[4:, 1:].tobytes()
    assert not Packed(("part_2.webp",), ("fine",)).lies_in(tmp_path)


@pytest.mark.parametrize("damaged", ["part_0.webp", "labels.npz"])
def test_a_damaged_part_is_one_line(
    rows: np.ndarray, tmp_path: Path, damaged: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / damaged
    file.write_bytes(file.read_bytes()[:100])
    source = sources.Source(
        {"a.bin": "0"},
        {},
        sources._idx,
        (),
        (),
        (),
        "",
        (),
        packed={"a.bin": Packed(("part_0.webp",), ("fine",))},
    )
    monkeypatch.setattr(sources.DATA, "own", {**sources.DATA.own, "toy": source})
    with pytest.raises(UserError, match="truncated or altered") as error:
        load_data("toy", tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not here")
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_shared_copies_have_the_official_checksums(name: str) -> None:
    ((file, digest),) = sources.SOURCES[name].test.items()
    content = sources.SOURCES[name].packed[file].content(SHARED / name)
    assert hashlib.sha256(content).hexdigest() == digest
