"""The list of mutations fits the code: every snippet and every test that it names is there."""

from pathlib import Path

import mutate
import pytest

ROOT = next(p for p in Path(__file__).resolve().parents if (p / "pyproject.toml").exists())
MUTATIONS = mutate.read(ROOT / "tests" / "mutations.toml")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_every_mutation_has_one_place_and_tests_that_exist(mutation: mutate.Mutation) -> None:
    _, match = mutate.place(ROOT, mutation)
    assert match.group() != mutation.after
    assert mutate.node_ids(ROOT, mutation)


def test_a_snippet_is_found_in_any_layout_and_refused_where_it_is_not_unique(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("x = f(\n    a + b,\n)\ny = 1\ny = 1\n")
    found = mutate.place(tmp_path, mutate.Mutation("layout", "a + b,", "a - b,", ()))
    assert found[1].group() == "a + b,"
    for before in ("y = 1", "z = 1"):
        with pytest.raises(SystemExit, match="must stand once"):
            mutate.place(tmp_path, mutate.Mutation("n", before, "", ()))
