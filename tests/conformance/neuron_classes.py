"""Every neuron class that a framework exports, and what a tap does with it, found by running it.

``tools/adapters_page.py`` writes the table of ``docs/reference/adapters.md`` from it.
"""

from __future__ import annotations

import inspect
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.adapters import layers, reset

STEPS, SAMPLES, WIDTH = 4, 3, 5
Raw = Any
"""Modules and outputs of frameworks without types."""


@dataclass(frozen=True)
class Case:
    """One class: ``build(reset, mode)`` gives an instance, ``None`` a bare one that only its name decides on.

    ``steps``: it is stepped from outside in mode 's'. ``current``: the input of a whole sequence. ``strict``:
    it fires above the threshold, not at it. ``pauses``: it may be silent above it.
    """

    name: str
    build: Callable[[str, str], nn.Module] | None = None
    resets: tuple[str, ...] = ("",)
    modes: tuple[str, ...] = ("m",)
    current: Callable[[], Tensor] = lambda: 2.5 * torch.rand(STEPS, SAMPLES, WIDTH)
    strict: bool = False
    run: Callable[[nn.Module, Tensor, str], Tensor] = field(default=lambda m, x, mode: plain(m, x, mode))
    pauses: bool = False


def plain(module: nn.Module, x: Tensor, mode: str) -> Tensor:
    """Spikes ``[T, N, ...]``."""
    out = module(x.clone()) if mode == "m" else torch.stack([first(module(step)) for step in x])
    return first(out)


def first(out: Raw) -> Tensor:
    spikes: Tensor = out[0] if isinstance(out, (tuple, list)) else out
    return spikes


def carried(module: nn.Module, x: Tensor, mode: str) -> Tensor:
    """Spikes of modules whose state is an argument."""
    if mode == "m":
        return first(module(x))
    state, spikes = None, []
    for step in x:
        z, state = module(step, state)
        spikes.append(z)
    return torch.stack(spikes)


def batch_first(module: nn.Module, x: Tensor, mode: str) -> Tensor:
    """Spikes of modules that compute ``[N, T, ...]``."""
    spikes: Tensor = module(x.transpose(0, 1))
    return spikes.transpose(0, 1)


def jelly(neuron: ModuleType) -> list[Case]:
    """The nodes of SpikingJelly, 2.0.0 or 0.0.0.0.14."""
    both, modes = ("hard", "soft"), ("s", "m")

    def node(name: str, *given: Raw, **more: Raw) -> Callable[[str, str], nn.Module]:
        def build(reset: str, mode: str) -> nn.Module:
            settings = {**more, "step_mode": mode, "v_reset": 0.0 if reset == "hard" else None}
            kind = getattr(neuron, name)
            taken = inspect.signature(kind.__init__).parameters
            var = any(p.kind is p.VAR_KEYWORD for p in taken.values())
            made = kind(*given, **{k: v for k, v in settings.items() if k in taken or var or k in more})
            made.step_mode = mode
            return made  # type: ignore[no-any-return]

        return build

    def noisy(name: str, *given: Raw) -> Callable[[str, str], nn.Module]:
        return lambda reset, mode: getattr(neuron, name)(*given, is_training=False, T=STEPS)

    def weak() -> Tensor:
        return torch.randn(STEPS, SAMPLES, WIDTH)

    def wide() -> Tensor:
        return torch.rand(STEPS, SAMPLES, WIDTH, 2, 2)

    def pairs() -> Tensor:
        return 2.0 * torch.rand(STEPS, SAMPLES, 6)

    klif = both if hasattr(neuron, "PSN") else ("hard",)  # 0.0.0.0.14 cannot compute the other
    return [
        Case("SimpleIFNode", node("SimpleIFNode"), both, modes),
        Case("SimpleLIFNode", node("SimpleLIFNode", 2.0, True), ("hard",), modes),
        Case("IFNode", node("IFNode"), both, modes),
        Case("LIFNode", node("LIFNode"), both, modes),
        Case("ParametricLIFNode", node("ParametricLIFNode"), both, modes),
        Case("HalfThresholdIFNode", node("HalfThresholdIFNode"), ("soft",), modes),
        Case("ActivationAwareIFNode", node("ActivationAwareIFNode"), both, modes),
        Case("QIFNode", node("QIFNode"), ("soft",), modes),
        Case("EIFNode", node("EIFNode"), ("soft",), modes),
        Case("IzhikevichNode", node("IzhikevichNode"), both, modes),
        Case("RAFNode", node("RAFNode"), both, modes),
        Case("KLIFNode", node("KLIFNode"), klif, modes),
        Case("ComplementaryLIFNode", node("ComplementaryLIFNode"), ("soft",), modes),
        Case("CUBALIFNode", node("CUBALIFNode"), both, modes, weak),
        Case("GatedLIFNode", node("GatedLIFNode", STEPS, WIDTH), ("gated",), ("m",), wide),
        Case("MPBNLIFNode", node("MPBNLIFNode", out_features=WIDTH), both, modes),
        Case("OTTTLIFNode", node("OTTTLIFNode"), both, ("s",)),
        Case("SLTTLIFNode", node("SLTTLIFNode"), both, ("s",)),
        Case("PSN", lambda reset, mode: neuron.PSN(STEPS), ("none",), ("m",)),
        Case("MaskedPSN", node("MaskedPSN", 2, STEPS, lambda_init=1.0), ("none",), modes),
        Case("SlidingPSN", node("SlidingPSN", 2), ("none",), modes),
        Case("ILCIFNode", lambda reset, mode: neuron.ILCIFNode(2, 3), ("hard",), ("m",), pairs),
        Case("ILCLIFNode", lambda reset, mode: neuron.ILCLIFNode(2, 3), ("hard",), ("m",), pairs),
        Case("ILCCUBALIFNode", lambda reset, mode: neuron.ILCCUBALIFNode(2, 3), ("hard",), ("m",), pairs),
        Case("NoisyCUBALIFNode", noisy("NoisyCUBALIFNode", WIDTH), ("hard",), ("m",), weak),
        Case("NoisyILCCUBALIFNode", noisy("NoisyILCCUBALIFNode", 2, 3), ("hard",), ("m",), pairs),
        *[Case(name) for name in ("ILIFNode", "TernaryIFNode", "TernaryLIFNode", "DSRIFNode", "DSRLIFNode")],
        *[Case(name) for name in ("LIAFNode", "STBIFNode", "FlexSN", "FewSpikeNode", "HGNode")],
        Case("OutlierAwareThresholdNode"),
        *[Case(name) for name in ("NonSpikingIFNode", "NonSpikingLIFNode", "NoisyNonSpikingIFNode")],
    ]


def torch_cases(snn: ModuleType) -> list[Case]:
    """The neurons of snnTorch."""
    resets = ("subtract", "zero", "none")

    def neuron(name: str, **more: Raw) -> Callable[[str, str], nn.Module]:
        return lambda reset, mode: getattr(snn, name)(**more, init_hidden=True, reset_mechanism=reset)

    def sequence(name: str, **more: Raw) -> Callable[[str, str], nn.Module]:
        return lambda reset, mode: getattr(snn, name)(**more)

    def images() -> Tensor:
        return torch.randn(STEPS, SAMPLES, 2, 4, 4)

    width, low = {"input_size": WIDTH, "hidden_size": WIDTH}, {"threshold": 0.05}
    return [
        Case("Leaky", neuron("Leaky", beta=0.8), resets, ("s",), strict=True),
        Case("RLeaky", neuron("RLeaky", beta=0.8, all_to_all=False), resets, ("s",), strict=True),
        Case("Synaptic", neuron("Synaptic", alpha=0.5, beta=0.8), resets, ("s",), strict=True),
        Case(
            "RSynaptic",
            neuron("RSynaptic", alpha=0.5, beta=0.8, all_to_all=False),
            resets,
            ("s",),
            strict=True,
        ),
        Case("Alpha", neuron("Alpha", alpha=0.85, beta=0.8, **low), resets, ("s",), strict=True),
        Case("Lapicque", neuron("Lapicque", beta=0.8, threshold=0.4), resets, ("s",), strict=True),
        Case("DeltaLeaky", neuron("DeltaLeaky", beta=0.8), ("none",), ("s",), strict=True),
        Case("SLSTM", neuron("SLSTM", **width, **low), resets, ("s",), strict=True),
        Case(
            "SConv2dLSTM",
            neuron("SConv2dLSTM", in_channels=2, out_channels=2, kernel_size=3, **low),
            resets,
            ("s",),
            images,
            strict=True,
        ),
        Case("StateLeaky", sequence("StateLeaky", beta=0.5, channels=WIDTH), ("none",), strict=True),
        Case(
            "LinearLeaky",
            sequence("LinearLeaky", beta=0.5, in_features=WIDTH, out_features=WIDTH, threshold=0.2),
            ("none",),
            strict=True,
        ),
        Case("LeakyParallel", sequence("LeakyParallel", **width, threshold=0.2), ("none",), strict=True),
        Case(
            "AssociativeLeaky",
            lambda reset, mode: snn.AssociativeLeaky(WIDTH, 2, 2, 4, use_q_projection=False),
            ("none",),
            current=lambda: 3.0 * torch.randn(STEPS, SAMPLES, WIDTH),
            strict=True,
        ),
    ]


def norse_cases(nt: ModuleType) -> list[Case]:
    """The modules of norse; cells are stepped from outside."""
    lif = import_module("norse.torch.functional.lif")
    izhikevich = import_module("norse.torch.functional.izhikevich")
    fast = {"tau_syn_inv": torch.tensor(500.0), "tau_mem_inv": torch.tensor(400.0)}

    def strong() -> Tensor:
        return 4.0 * torch.rand(STEPS, SAMPLES, WIDTH)

    def parameters(kind: type) -> Raw:
        taken = kind._field_defaults  # type: ignore[attr-defined]
        return kind(
            **{k: v for k, v in fast.items() if k in taken},
            **({"lif": lif.LIFParameters(**fast)} if "lif" in taken else {}),
        )

    def module(name: str, family: str, sizes: bool, given: str) -> Callable[[str, str], nn.Module]:
        file = import_module(f"norse.torch.functional.{family}")
        kind = getattr(file, given) if given else None

        def build(reset: str, mode: str) -> nn.Module:
            made: nn.Module = getattr(nt, name)(
                *((WIDTH, WIDTH) if sizes else ()), **({} if kind is None else {"p": parameters(kind)})
            )
            return made

        return build

    def behaves(name: str, sizes: bool) -> Callable[[str, str], nn.Module]:
        return lambda reset, mode: getattr(nt, name)(
            *((WIDTH, WIDTH) if sizes else ()), spiking_method=izhikevich.tonic_spiking
        )

    rows = [
        ("LIF", "lif", "LIFParameters", ("LIF", "LIFCell", "LIFRecurrent", "LIFRecurrentCell")),
        ("IAF", "iaf", "IAFParameters", ("IAF", "IAFCell")),
        ("LIFBox", "lif_box", "LIFBoxParameters", ("LIFBoxCell",)),
        (
            "LIFEx",
            "lif_ex",
            "LIFExParameters",
            ("LIFEx", "LIFExCell", "LIFExRecurrent", "LIFExRecurrentCell"),
        ),
        (
            "LIFAdEx",
            "lif_adex",
            "LIFAdExParameters",
            ("LIFAdEx", "LIFAdExCell", "LIFAdExRecurrent", "LIFAdExRecurrentCell"),
        ),
        ("LSNN", "lsnn", "LSNNParameters", ("LSNN", "LSNNCell", "LSNNRecurrent", "LSNNRecurrentCell")),
        (
            "LIFRefrac",
            "lif_refrac",
            "LIFRefracParameters",
            ("LIFRefracCell", "LIFRefracRecurrent", "LIFRefracRecurrentCell"),
        ),
        (
            "LIFAdExRefrac",
            "lif_adex_refrac",
            "",
            ("LIFAdExRefracCell", "LIFAdExRefracRecurrent", "LIFAdExRefracRecurrentCell"),
        ),
    ]
    found = [
        Case(
            name,
            module(name, family, "Recurrent" in name, given),
            ("hard",),
            ("s",) if name.endswith("Cell") else ("m",),
            strong,
            True,
            carried,
        )
        for _, family, given, names in rows
        for name in names
    ]
    found += [
        Case(
            name,
            behaves(name, "Recurrent" in name),
            ("hard",),
            ("s",) if name.endswith("Cell") else ("m",),
            lambda: 1000.0 * torch.rand(STEPS, SAMPLES, WIDTH),
            True,
            carried,
        )
        for name in ("Izhikevich", "IzhikevichCell", "IzhikevichRecurrent", "IzhikevichRecurrentCell")
    ]
    pausing = ("LIFRefrac", "LIFAdExRefrac")
    found = [replace(c, pauses=c.name.startswith(pausing)) for c in found]
    coupled = module("LIFMCRecurrentCell", "lif_mc", True, "")
    found.append(Case("LIFMCRecurrentCell", coupled, ("hard",), ("s",), strong, True, carried))
    quiet = ("LI", "LICell", "LILinearCell", "LIBoxCell")
    refused = ("CobaLIFCell", "LIFMCRefracRecurrentCell", "LIFCorrelation")
    return [*found, *[Case(name) for name in (*refused, *quiet)]]


def sinabs_cases(sl: ModuleType) -> list[Case]:
    """The layers of sinabs."""
    sa = import_module("sinabs.activation")
    resets = {"subtract": sa.MembraneSubtract(), "zero": sa.MembraneReset()}

    def built(name: str, **more: Raw) -> Callable[[str, str], nn.Module]:
        def build(reset: str, mode: str) -> nn.Module:
            rest = {"rec_connect": nn.Linear(WIDTH, WIDTH)} if "Recurrent" in name else {}
            made: nn.Module = getattr(sl, name)(**more, **rest, reset_fn=resets[reset])
            return made

        return build

    def squeezed(module: nn.Module, x: Tensor, mode: str) -> Tensor:
        spikes: Tensor = module(x.transpose(0, 1).flatten(0, 1))
        return spikes.reshape(SAMPLES, STEPS, WIDTH).transpose(0, 1)

    leak, adapt, size = {"tau_mem": 3.0}, {"tau_mem": 3.0, "tau_adapt": 4.0}, {"batch_size": SAMPLES}

    def strong() -> Tensor:
        return 5.0 * torch.rand(STEPS, SAMPLES, WIDTH)

    both = ("subtract", "zero")
    return [
        Case("LIF", built("LIF", **leak), both, current=strong, run=batch_first),
        Case("LIFRecurrent", built("LIFRecurrent", **leak), both, current=strong, run=batch_first),
        Case("LIFSqueeze", built("LIFSqueeze", **leak, **size), both, current=strong, run=squeezed),
        Case("IAF", built("IAF"), both, run=batch_first),
        Case("IAFRecurrent", built("IAFRecurrent"), both, run=batch_first),
        Case("IAFSqueeze", built("IAFSqueeze", **size), both, run=squeezed),
        Case("ALIF", built("ALIF", **adapt), both, current=strong, run=batch_first),
        Case("ALIFRecurrent", built("ALIFRecurrent", **adapt), both, current=strong, run=batch_first),
        Case("ALIFSqueeze", built("ALIFSqueeze", **adapt, **size), both, current=strong, run=squeezed),
        *[Case(name) for name in ("ExpLeak", "ExpLeakSqueeze")],
    ]


FRAMEWORKS: dict[str, tuple[str, Callable[[ModuleType], list[Case]]]] = {
    "SpikingJelly": ("spikingjelly.activation_based.neuron", jelly),
    "snnTorch": ("snntorch", torch_cases),
    "norse": ("norse.torch", norse_cases),
    "sinabs": ("sinabs.layers", sinabs_cases),
}
ABSTRACT = {  # of classes that others derive from
    *("BaseNode", "SimpleBaseNode", "AdaptBaseNode", "NonSpikingBaseNode", "MPBNBaseNode", "ILCBaseNode"),
    *("NoisyBaseNode", "NoisyILCBaseNode", "NoisyNonSpikingBaseNode"),  # SpikingJelly
    "SpikingNeuron",  # snnTorch
    *("SNN", "SNNCell", "SNNRecurrent", "SNNRecurrentCell"),  # norse
    "StatefulLayer",  # sinabs
}


def exported(framework: str) -> set[str]:
    """The names of the neuron classes that a framework exports."""
    home = import_module(FRAMEWORKS[framework][0])
    kinds = {n: c for n, c in vars(home).items() if inspect.isclass(c) and issubclass(c, nn.Module)}
    if framework == "norse":  # its namespace loads every file's classes
        kinds = {n: c for n, c in kinds.items() if hasattr(c, "initial_state") or "LI" in n}
        kinds = {n: c for n, c in kinds.items() if "Encoder" not in n}
    if framework == "sinabs":
        base = import_module("sinabs.layers").StatefulLayer
        kinds = {n: c for n, c in kinds.items() if issubclass(c, base)}
        return set(kinds) - {"StatefulLayer"}
    if framework == "snnTorch":
        kinds = {n: c for n, c in kinds.items() if "_neurons" in c.__module__ and n != "LIF"}
    return set(kinds) - ABSTRACT


def cases(framework: str) -> list[Case]:
    """The cases of the classes that the installed version exports."""
    home = import_module(FRAMEWORKS[framework][0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [case for case in FRAMEWORKS[framework][1](home) if hasattr(home, case.name)]


def bare(home: ModuleType, name: str) -> nn.Module:
    """An instance of a class whose settings do not matter here."""
    kind = getattr(home, name)
    made: nn.Module = kind.__new__(kind)
    nn.Module.__init__(made)
    return made


@dataclass(frozen=True)
class Outcome:
    """What a tap did: ``refused`` with a reason, or "" and what works."""

    refused: str = ""
    spikes: bool = True
    sequence: bool = False
    detach: bool = False


def variants(case: Case) -> Iterator[tuple[str, str, bool]]:
    """All combinations of reset, step mode and training."""
    for kind in case.resets:
        for mode in case.modes:
            for training in (True, False):
                yield kind, mode, training


def outcome(framework: str, case: Case, kind: str, mode: str, training: bool) -> Outcome:
    """What a tap does with one variant; AssertionError where it does something wrong."""
    home = import_module(FRAMEWORKS[framework][0])
    if case.build is None:
        return _judged(bare(home, case.name))
    torch.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = case.build(kind, mode).train(training)
    judged = _judged(module)
    if not judged.refused and judged.spikes:
        check(module, case, mode)
    return judged


def _judged(module: nn.Module) -> Outcome:
    found = layers(module)
    if not found:
        return Outcome(spikes=False)
    assert len(found) == 1
    able = {}
    for what, given in {"read": {}, "sequence": {"relu": True}, "detach": {"detach_reset": True}}.items():
        try:
            sg.tap(module, **given)  # type: ignore[arg-type]
            able[what] = ""
        except sg.UserError as error:
            able[what] = str(error).partition("): ")[2]
    return Outcome(able["read"], True, not able["sequence"], not able["detach"])


def check(module: nn.Module, case: Case, mode: str) -> None:
    """Reading changes nothing; noise, surrogate and restoration are what they should be."""
    x = case.current()
    before = dict(vars(module))

    def spikes(**changes: Raw) -> tuple[Tensor, sg.adapters.Tap]:
        reset(module)
        with sg.tap(module, **changes) as tapped:
            return case.run(module, x, mode), tapped

    reset(module)
    own = case.run(module, x, mode).detach()
    read, tapped = spikes()
    assert torch.equal(own, read.detach()), "reading changes the output"
    assert list(tapped.potentials) == [""], f"recorded {list(tapped.potentials)}"
    u = tapped.potentials[""]
    assert u.shape == own.shape, f"u {tuple(u.shape)}, spikes {tuple(own.shape)}"
    fires = u > 0 if case.strict else u >= 0
    assert torch.equal(fires & (own != 0) if case.pauses else fires, own != 0), "spikes are where u says"
    assert 0.05 < float(fires.float().mean()) < 0.95, "the input is no test"
    sigma = float(u.std())
    noisy = [spikes(noise=sigma, seed=s, potentials=True)[0] for s in (1, 1, 2)]
    assert torch.equal(noisy[0], noisy[1]), "the same seed draws other noise"
    assert not torch.equal(noisy[0], noisy[2]), "another seed draws the same noise"
    assert not torch.equal(noisy[0], own), "noise moves nothing"
    gradients: list[Tensor] = []
    for surrogate in (sg.surrogates.Atan(2.0), sg.surrogates.Triangle(5.0)):
        z = x.clone().requires_grad_()
        reset(module)
        with sg.tap(module, surrogate=surrogate):
            out = case.run(module, z, mode)
        assert torch.equal(out.detach(), own), "a surrogate changes the output"
        gradients += torch.autograd.grad(out.sum(), z)
    assert not torch.equal(*gradients), "the surrogate is not swapped"
    assert all(bool(g.isfinite().all()) and float(g.abs().sum()) > 0 for g in gradients)
    reset(module)
    after = vars(module)
    for name in {*SEAMS} & {*before, *after}:
        assert after[name] is before[name], f"{name} is not restored"


SEAMS = ("forward", "surrogate_function", "spike_grad", "mem_reset", "activation", "spike_fn", "reset_fn")
"""Attributes in whose place a tap puts its own."""


@dataclass(frozen=True)
class Row:
    """What a tap does with a class in some of its variants."""

    name: str
    resets: tuple[str, ...]
    modes: tuple[str, ...]
    states: tuple[str, ...]
    spikes: bool
    sequence: tuple[str, ...]
    detach: bool
    refused: str

    def line(self, framework: str) -> str:
        """Its line in the table of docs/reference/adapters.md."""
        head = f"| {framework} | {self.name} |"
        if not self.spikes:
            return f"{head} | | | no spikes: passed over | | |"
        states = " | ".join([", ".join(filter(None, self.resets)), ", ".join(MODES[m] for m in self.modes)])
        if self.refused:
            when = "" if len(self.states) == 2 else f"in {self.states[0]} mode "
            return f"{head} {states if when else ' | '} | {when}refused: {self.refused} | | |"
        when = "works" if len(self.states) == 2 else f"works in {self.states[0]} mode"
        yes = {True: "yes", False: "no"}
        whole = "yes" if self.sequence else "no"
        return f"{head} {states} | {when} | {yes[self.detach]} | {whole} |"


MODES = {"s": "step", "m": "sequence"}


def rows_of(framework: str, case: Case) -> list[Row]:
    """What the installed version does with one class, by running every variant."""
    groups: dict[tuple[str, bool, bool], list[tuple[str, str, str, Outcome]]] = {}
    for kind, mode, training in variants(case):
        got = outcome(framework, case, kind, mode, training)
        state = "train" if training else "eval"
        groups.setdefault((got.refused, got.spikes, got.sequence), []).append((kind, mode, state, got))
    found = []
    for (refused, spikes, sequence), group in groups.items():
        kinds, modes, states = (tuple(dict.fromkeys(str(v[k]) for v in group)) for k in range(3))
        detach = any(v[3].detach for v in group)
        able = modes if sequence else ()
        found.append(Row(case.name, kinds, modes, states, spikes, able, detach, refused))
    return found


def lines(framework: str, label: str = "") -> list[str]:
    """The lines of the table that belong to a framework, as its installed version behaves."""
    return [row.line(label or framework) for case in cases(framework) for row in rows_of(framework, case)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    json.dump(lines(*sys.argv[1:]), sys.stdout)
