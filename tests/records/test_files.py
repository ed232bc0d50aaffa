"""Files that strangers hand in, and files that a killed process leaves: bounded, checked, one line."""

import fcntl
import gzip
import io
import json
import os
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from spikeguard.data import sources
from spikeguard.errors import UserError
from spikeguard.records import arrays
from spikeguard.records.arrays import Array, read_arrays
from spikeguard.records.build import build
from spikeguard.records.files import (
    read_bytes,
    read_json,
    remove_unfinished,
    write_atomic,
    write_bytes,
    write_json,
)
from spikeguard.records.schema import AttackRecord
from spikeguard.records.training import TrainingRecord
from spikeguard.runtime.shown import cell, one_line, printable
from spikeguard.training.recipe import read_toml

OLD = Path(__file__).parents[1] / "data" / "schema1"


def test_what_a_killed_process_left_is_removed_at_the_next_write_and_what_is_being_written_stays(
    tmp_path: Path,
) -> None:
    left = tmp_path / ".state.safetensors.v50o7yd0"
    other, hidden = tmp_path / ".run.json.abcdefgh", tmp_path / ".config"
    for path in (left, other, hidden):
        path.write_text("half")
    write_bytes(tmp_path / "state.safetensors", b"whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".config",
        ".run.json.abcdefgh",
        "state.safetensors",
    ]
    with open(other) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        remove_unfinished(tmp_path)
        assert other.exists()
    remove_unfinished(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".config", "state.safetensors"]


def test_a_file_that_is_being_written_is_locked(tmp_path: Path) -> None:
    def write(file: IO[bytes]) -> None:
        remove_unfinished(tmp_path)
        assert len(list(tmp_path.iterdir())) == 1
        file.write(b"x")

    write_atomic(tmp_path / "a.json", write)
    assert (tmp_path / "a.json").read_bytes() == b"x"


def test_a_record_carries_a_digest_of_itself_and_an_old_one_is_read_without(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    record = TrainingRecord.read(OLD / "training.json")
    record.write(path)
    text = path.read_text()
    assert "digest" in json.loads(text)
    assert TrainingRecord.read(path) == record
    path.write_text(json.dumps(dict(reversed(json.loads(text).items()))))  # another layout, the same values
    assert TrainingRecord.read(path) == record
    path.write_text(text.replace('"parameters": ', '"parameters": 1'))
    with pytest.raises(UserError, match="was changed or damaged after it was written"):
        TrainingRecord.read(path)
    plain = tmp_path / "plain.json"
    write_json(plain, {"a": 1})
    assert read_json(plain) == json.loads(plain.read_text()) == {"a": 1}


def test_pipes_and_large_files_are_refused_before_they_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(UserError, match="not a regular file"):
            read_bytes(path)
    (tmp_path / "large").write_bytes(b"12345")
    with pytest.raises(UserError, match="at most"):
        read_bytes(tmp_path / "large", 4)
    with pytest.raises(UserError, match="cannot read"):
        read_bytes(Path("a\0b"))
    with pytest.raises(UserError, match="cannot write"):
        write_bytes(Path("a\0b"), b"")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "nul", '{"schema": true}', '{"schema": 1e400}', "[]", "\ud800"]
)
def test_what_is_no_record_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(UserError) as error:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(error.value)


def test_damage_anywhere_in_a_file_of_arrays_is_one_line(tmp_path: Path) -> None:
    kinds = {"rows": "int64", "grid": "uint16"}
    held: dict[str, Array] = {"rows": np.arange(3), "grid": np.arange(12, dtype=np.uint16).reshape(3, 4)}
    path = tmp_path / "a.npz"
    np.savez_compressed(path, rows=held["rows"], grid=held["grid"])
    whole = path.read_bytes()
    assert all(np.array_equal(v, held[k]) for k, v in read_arrays(path, kinds, "arrays").items())
    said: list[str] = []
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        try:  # a flip in a date or a comment changes nothing
            found = read_arrays(path, kinds, "arrays")
        except UserError as error:
            found, said = held, [*said, str(error)]
        assert all(np.array_equal(v, held[k]) for k, v in found.items()), at
    assert len(said) > 20
    assert not any("\n" in line for line in said)
    path.write_bytes(whole[:100])
    with pytest.raises(UserError, match="holds no arrays"):
        read_arrays(path, kinds, "arrays")


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros(3, np.float64),
        np.zeros(3, bool),
        np.zeros(3, "M8[s]"),
        np.zeros(3, [("a", np.int64)]),
        np.array([None] * 3, dtype=object),
    ],
    ids=lambda v: str(v.dtype),
)
def test_arrays_of_other_dtypes_are_refused(rows: Array, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", rows=rows)
    with pytest.raises(UserError, match="rows is"):
        read_arrays(tmp_path / "a.npz", {"rows": "int64"}, "arrays")


def bomb(path: Path, announced: tuple[int, ...], size: int = 10**6) -> None:
    """Zeros that announce another shape than they have."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": announced})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("rows.npy", header.getvalue() + bytes(size))


def test_a_file_that_would_unpack_to_far_more_than_its_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "SMALL", 10**5)
    bomb(tmp_path / "a.npz", (125_000,))
    with pytest.raises(UserError, match="would unpack to"):
        read_arrays(tmp_path / "a.npz", {"rows": "int64"}, "arrays")
    monkeypatch.undo()
    bomb(tmp_path / "b.npz", (10**12,))
    with pytest.raises(UserError, match="its size is not that of its shape"):
        read_arrays(tmp_path / "b.npz", {"rows": "int64"}, "arrays")


def test_data_files_that_unpack_without_end_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "LARGEST", 10**5)
    name = next(iter(sources.SOURCES["fashion-mnist"].train))
    with gzip.open(tmp_path / f"{name}.gz", "wb") as file:
        file.write(bytes(10**6))
    with pytest.raises(UserError, match="unpacks to more than"):
        sources._load("fashion-mnist", str(tmp_path), False)
    archive = tmp_path / sources.SOURCES["cifar10"].downloads[0]
    for before in (0, 10):
        with tarfile.open(archive, "w:gz") as tar:
            for k in range(before + 1):
                member = tarfile.TarInfo("data_batch_1.bin" if k == before else f"other{k}")
                member.size = 10**6 if k == before else 9 * 10**4
                tar.addfile(member, io.BytesIO(bytes(member.size)))
        with pytest.raises(UserError, match="unpacks to more than"):
            sources._load("cifar10", str(tmp_path), False)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (10**30, "must lie between -2"),
        (10**400, "must lie between -2"),
        (-(10**5000), "must lie between -2"),
        (float("inf"), "must be a finite number"),
        (float("nan"), "must be a finite number"),
        ("x" * 10**6, "must be a number"),
    ],
    ids=["1e30", "1e400", "-1e5000", "inf", "nan", "text"],
)
def test_numbers_that_are_none_are_refused_in_one_short_line(value: object, message: str) -> None:
    values = TrainingRecord.read(OLD / "training.json").to_json()
    with pytest.raises(UserError, match=message) as error:
        build(TrainingRecord, {**without_kind(values), "kept_accuracy": value}, "r")
    assert len(str(error.value)) < 300


def without_kind(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k not in ("schema", "kind")}


@pytest.mark.parametrize("key", ["clean", "threat", "first", "cost", "images", "worst_case", "members"])
def test_a_damaged_record_of_schema_1_is_one_line_or_read(key: str) -> None:
    old = json.loads((OLD / "attack.json").read_text())
    values: tuple[object, ...] = (3, [], {}, "x", None, [[]], {"a": 1})
    for value in values:
        with suppress(UserError):  # some of these are read, none of them ends otherwise
            AttackRecord.from_json({**old, key: value})
    if key in ("clean", "threat", "first", "images", "worst_case"):
        with pytest.raises(UserError, match="missing"):
            AttackRecord.from_json({k: v for k, v in old.items() if k != key})


def test_what_a_user_names_is_never_obeyed() -> None:
    assert printable("a\x1b[31m\x9b\u202e\udcffb\n") == "a\\x1b[31m\\x9b\\u202e\\udcffb\n"
    assert one_line("a\nb\tc") == "a\\nb\\tc"
    for start in "=+-@":
        assert cell(f"{start}1") == f"'{start}1"
    assert cell("\t=1").startswith("'")
    assert cell("runs/tgo") == "runs/tgo"


def test_only_a_regular_file_is_replaced_and_a_link_stays_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_bytes(b"kept")
    (tmp_path / "link").symlink_to(tmp_path / "behind" / "target")
    for name in ("pipe", ".", "loop/x", "file/x", "a" * 300, "nul\0"):
        with pytest.raises(UserError, match="cannot write"):
            write_bytes(tmp_path / name, b"new")
    with pytest.raises(UserError, match="not a regular file"):
        write_bytes(Path("/dev/null"), b"new")
    assert (tmp_path / "file").read_bytes() == b"kept"
    write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "behind" / "target").read_bytes() == b"new"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="no permission to write in"):
        write_bytes(tmp_path / "other", b"new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["behind", "file", "link", "loop", "pipe"]


def test_a_mark_of_utf8_that_an_editor_wrote_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("\ufeffepochs = 3\n", encoding="utf-8")
    assert read_toml(tmp_path / "r.toml") == {"epochs": 3}
