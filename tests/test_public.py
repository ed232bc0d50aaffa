"""The public surface: one list, lazily loaded, with the names of 0.1 beside it."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import spikeguard as sg
from spikeguard.deprecated import NAMES
from spikeguard.errors import nearest, unknown
from spikeguard.lazy import read_stub

PACKAGE = Path(sg.__file__).parent
NAMESPACES = (
    "adapters",
    "attacks",
    "auditing",
    "data",
    "defenses",
    "gradients",
    "interchange",
    "neurons",
    "surrogates",
    "training",
)
PUBLIC_IN_0_1 = """
    AT ANNTwin Atan AttackError Attacked Audit Band Conversion DLIF DSD Defense Distillation EMA
    EarlyStopping Exponential FEEL FirstLayerGuard FittedSurrogate Flag Gaussian HoSNN IF InputNoise
    InputQuantisation L1 L2 LIF Linf MART MPDSGR MPPD Member Neuron Noise PLIF RAT RandHet Recipe
    Rectangle Run SR ShiftGuard Sigmoid StoG StraightThrough TGO TRADES TemporalEnsemble Triangle
    UserError apgd apgd_targeted assg audit bim bptr build compose cw drawn each_step eot fab fgsm
    hart load load_data mean_field noise pdsg pgd pulled random_search rays relu_twin rfgsm rga
    sapgd soft square still swap tap targeted through train unlocked zeroth
""".split()  # noqa: SIM905


def test_the_stub_is_the_one_list_of_public_names() -> None:
    assert vars(sg)["__all__"] == dir(sg) == sorted(read_stub(sg.__file__))
    assert {n for n in dir(sg) if n in NAMESPACES} == set(NAMESPACES)
    functions_and_classes = set(dir(sg)) - set(NAMESPACES) - {*sg.attacks.__all__}
    assert len(functions_and_classes) <= 32  # "about thirty": more belongs into a namespace
    for line in (PACKAGE / "__init__.pyi").read_text().splitlines():
        assert re.fullmatch(r'""".*"""||from \S+ import (\w+) as \1', line), line


@pytest.mark.parametrize("name", [n for n in dir(sg) if n not in NAMESPACES])
def test_every_public_name_is_there_and_says_what_it_is(name: str) -> None:
    assert getattr(sg, name).__doc__


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_every_name_of_a_namespace_is_there(namespace: str) -> None:
    module = importlib.import_module(f"spikeguard.{namespace}")
    assert getattr(sg, namespace) is module
    for name in module.__all__:
        assert getattr(module, name) is not None


@pytest.mark.parametrize("name", PUBLIC_IN_0_1)
def test_every_public_name_of_0_1_works_and_an_old_one_names_the_new(name: str) -> None:
    if name in dir(sg):
        assert name not in NAMES
        return
    with pytest.warns(
        DeprecationWarning, match=rf"sg\.{name} is deprecated since 0.2, use sg\.{NAMES[name]}"
    ):
        old = getattr(sg, name)
    new = sg
    for part in NAMES[name].split("."):
        new = getattr(new, part)
    assert old is new


def test_no_deprecated_name_is_unknown_to_0_1() -> None:
    assert set(NAMES) <= set(PUBLIC_IN_0_1)


def test_a_wrong_name_names_the_nearest() -> None:
    for name, near in (("apgdd", "'apgd'"), ("ASSG", "'gradients.ASSG'"), ("Linff", "'Linf'")):
        with pytest.raises(AttributeError, match=f"no attribute '{name}'; did you mean {near}"):
            getattr(sg, name)
    with pytest.raises(AttributeError) as error:
        getattr(sg.auditing, "xyzzy")  # noqa: B009
    assert str(error.value) == "module 'spikeguard.auditing' has no attribute 'xyzzy'"


def test_errors_on_names_show_the_nearest_first() -> None:
    assert nearest("EPOCH", ["lr", "epochs"]) == "epochs"
    assert nearest("zzz", ["lr", "epochs"]) is None
    error = unknown("verb", "trian", ["train", "attack"], more="; or none")
    assert str(error) == "unknown verb 'trian' (did you mean 'train'? known: train, attack; or none)"


def test_neither_the_import_nor_a_wrong_name_loads_torch_or_numpy() -> None:
    code = (
        "import sys, spikeguard as sg\n"
        "dir(sg), hasattr(sg, 'nothing'), hasattr(sg, '__wrapped__')\n"
        "print([m for m in ('torch', 'numpy', 'ast', 'difflib') if m in sys.modules and m != 'difflib'])\n"
        "sg.Linf; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "True"]


def test_the_version_is_that_of_the_built_package() -> None:
    from setuptools.config.pyprojecttoml import read_configuration  # type: ignore[import-untyped]

    declared = read_configuration(PACKAGE.parents[1] / "pyproject.toml")
    assert sg.__version__ == declared["project"]["version"]
