"""Literature of the flags: who found the symptom first, and what the source says about it."""

_ATHALYE = (
    "Athalye, Carlini, Wagner, *Obfuscated gradients give a false sense of security: circumventing defenses "
    "to adversarial examples*, ICML 2018"
)
_CARLINI = "Carlini et al., *On evaluating adversarial robustness*, arXiv 1902.06705, 2019"
_TRAMER = (
    "Tramer, Carlini, Brendel, Madry, *On adaptive attacks to adversarial example defenses*, NeurIPS 2020"
)
_CROCE = (
    "Croce, Hein, *Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free "
    "attacks*, ICML 2020"
)
_PINTOR = (
    "Pintor et al., *Indicators of attack failure: debugging and improving optimization of adversarial "
    "examples*, NeurIPS 2022"
)
_DISTILLATION = "Carlini, Wagner, *Towards evaluating the robustness of neural networks*, IEEE S&P 2017"
_EOT = "Athalye, Engstrom, Ilyas, Kwok, *Synthesizing robust adversarial examples*, ICML 2018"
_ASSG = "arXiv 2512.22522: adaptive sharpness of the surrogate, and SA-PGD, for spiking networks"

LITERATURE: dict[str, tuple[str, ...]] = {
    "no-gradient": (f"{_ATHALYE}: vanishing gradients.", f"{_PINTOR}: zero gradients."),
    "state-carried-over": (f"{_TRAMER}: attack the function that is scored, not a relative of it.",),
    "model-changed": (f"{_CARLINI}: the attacked and the scored model are the same.",),
    "depends-on-batch": (f"{_CARLINI}: state the threat model; here the other images are part of it.",),
    "no-logits": (f"{_DISTILLATION}: a saturated softmax stops attacks and nothing else.",),
    "decoy-logits": (f"{_TRAMER}: attack the function that is scored, not a relative of it.",),
    "nothing-ran": (f"{_CARLINI}: verify that the attack runs before its result counts.",),
    "not-reproduced": (f"{_CARLINI}: release what others need to repeat the evaluation.",),
    "attack-invalid": (f"{_CARLINI}: verify that adversarial inputs respect the threat model.",),
    "changed-at-eps-0": (f"{_CARLINI}: plot accuracy against the budget, from 0 on.",),
    "not-broken-at-eps-1": (
        f"{_ATHALYE}: unbounded attacks that do not reach 100 % success are a sign of masking.",
        f"{_PINTOR}: an unconstrained attack that fails.",
    ),
    "no-better-than-noise": (
        f"{_ATHALYE}: random sampling that finds adversarial inputs where gradients do not.",
        f"{_CARLINI}: try random noise, and a larger budget.",
    ),
    "black-box-beats-white-box": (
        f"{_ATHALYE}: black-box attacks that beat white-box attacks are a sign of masking.",
        f"{_CARLINI}: run attacks without gradients.",
    ),
    "random-without-eot": (
        f"{_EOT}.",
        f"{_ATHALYE}: stochastic gradients.",
        "AutoAttack's authors' code, [pull request 105](https://github.com/fra31/auto-attack/pull/105), "
        "2024: judging a random defense by a single draw inflates an attack's success, and keeps it from "
        "inputs that would break more draws.",
    ),
    "spikes-unread": (f"{_ASSG}; the attack needs every potential.", f"{_TRAMER}: attack all parts."),
    "spikes-unreached": (f"{_ATHALYE}: shattered gradients.",),
    "zero-gradient": (f"{_PINTOR}: zero gradients.", f"{_ATHALYE}: vanishing gradients."),
    "locked-gradient": (f"{_ATHALYE}: shattered gradients, and BPDA as the answer.",),
    "saturated-logits": (f"{_DISTILLATION}.", f"{_CROCE}: the DLR loss does not saturate."),
    "masking": (f"{_ATHALYE}.", f"{_TRAMER}.", f"{_ASSG}."),
    "not-converged": (
        f"{_CARLINI}: check that attacks converge.",
        f"{_CROCE}: PGD with a fixed step and few iterations overstates.",
    ),
    "more-steps-weaker": (f"{_CARLINI}: more iterations must not weaken an attack.", f"{_CROCE}."),
    "pgd-weaker-than-fgsm": (
        f"{_ATHALYE}: one-step attacks that beat iterative attacks are a sign of masking.",
    ),
    "apgd-weaker-than-pgd": (f"{_CROCE}: APGD with as many steps is the stronger attack.",),
    "eot-weaker": (f"{_EOT}.", f"{_TRAMER}: randomized defenses."),
    "attack-failed": (f"{_CARLINI}: verify that the attack runs before its result counts.",),
    "witness-lost": (f"{_CARLINI}: verify that adversarial inputs respect the threat model.",),
    "broken-by-nan": (f"{_CARLINI}: verify that adversarial inputs respect the threat model.",),
    "clean-accuracy-low": (f"{_CARLINI}: report clean accuracy beside robust accuracy.",),
    "budget-unused": (f"{_CARLINI}: state the threat model, its norm and its units.",),
    "tied-scores": (f"{_CARLINI}: verify that a success is one.",),
    "few-images": (f"{_CARLINI}: attack enough images, at random from the test set.",),
    "random-model": (f"{_EOT}.",),
    "black-box-first": (f"{_CARLINI}: run attacks without gradients.",),
}
"""Id of a flag -> its sources, one sentence each."""
