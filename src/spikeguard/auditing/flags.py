"""Flags: what an audit finds about its own reliability.

Level 'error' is for what makes the number worthless; the others are reported beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spikeguard.records.schema import Flag as Flag
from spikeguard.records.schema import Level
from spikeguard.stats import ALPHA


@dataclass(frozen=True)
class Kind:
    """A kind of flag: its level, what it says, why it matters and what to do; ``docs/flags`` shows them."""

    level: Level
    says: str
    why: str
    do: str


KINDS: dict[str, Kind] = {
    "no-gradient": Kind(
        "error",
        "No estimator gives a gradient on more than 5 % of the images that survived, and these are more than "
        "1 % of all images.",
        "Gradient attacks did nothing on these images. That they survived says that the attacks failed, "
        "not that the network held.",
        "Search for detach, no_grad, rounding, argmax or an eval mode that cuts the graph. With spiking "
        "networks of other frameworks, check whether their neurons pass gradients in eval mode.",
    ),
    "state-carried-over": Kind(
        "error",
        "The model gives other logits for the same images the second time, by more than rounding, and no "
        "random generator that can be seeded explains it.",
        "Membrane potentials (or something else) are carried from call to call, so an attack and its "
        "check see different networks.",
        "Reset the network's state at the start of every call: `sg.wrap` does. The message ends with its "
        "arguments where trying found them. No attack runs on such a model, so that nothing waits for it.",
    ),
    "model-changed": Kind(
        "error",
        "Checks or attacks changed the mode or the buffers of the model, and it gives other logits now.",
        "A network that changes while it is measured (batch norm in training mode, running averages) is "
        "another network at the end. Counters and caches that no logit depends on may change.",
        "Call eval() and make forward free of side effects.",
    ),
    "depends-on-batch": Kind(
        "error",
        "More than 2 % of the predicted classes change with the other images of the batch, ties aside.",
        "Then robust accuracy is no property of an image, and an attack may work by its neighbors only.",
        "Use running statistics instead of those of the batch; do not normalize over the batch.",
    ),
    "no-logits": Kind(
        "error",
        "The outputs of the model are no logits.",
        "Probabilities saturate and classes are flat: losses and gradients of attacks vanish, which looks"
        " like robustness. Spike counts and rates with a surrogate gradient are fine, and so are classes "
        "masked by -inf.",
        "Return the values before softmax or argmax. If there are none, the accuracy reported here rests on "
        "attacks that use labels or scores and is a loose bound.",
    ),
    "decoy-logits": Kind(
        "error",
        "The model gives other logits when its input requires a gradient, by more than rounding.",
        "Attacks then differentiate another function than the one that is scored.",
        "Remove the branch. If it is a side effect of a fast path, make both paths give the same numbers.",
    ),
    "nothing-ran": Kind(
        "error",
        "Every attack of the suite failed.",
        "A network that no attack ran on is not measured at all.",
        "Read the reason; most often the model's own code raises when its input requires a gradient, or "
        "for some batch.",
    ),
    "not-reproduced": Kind(
        "error",
        "A fresh process, which loaded model and images again, did not find what the record says.",
        "What was measured depends on something that the record does not hold: state of the process, a "
        "changed file, another machine's arithmetic.",
        "See the reasons in the record's `fresh_process`; fix what differs between two loads of the "
        "model, and audit again.",
    ),
    "attack-invalid": Kind(
        "error",
        "An attack left its budget, the range [0, 1], or returned values that are not finite.",
        "Such a result is no evidence of anything.",
        "If it came from an attack of your own in `extra`, project into the budget and into [0, 1]; else "
        "report it.",
    ),
    "changed-at-eps-0": Kind(
        "error",
        "An audit with a budget of zero does not return the clean accuracy.",
        "With nothing allowed to change, nothing may change: the scoring itself is broken, or the model's"
        " outputs are not reproducible.",
        "Search for state, for randomness of its own that no seed reaches, and for outputs that depend on"
        " the batch.",
    ),
    "not-broken-at-eps-1": Kind(
        "error",
        "With every image allowed, gradients from the image itself do not bring accuracy down to chance, nor "
        "to 10 %, although the model has an image for more than one class.",
        "Such a classifier can be fooled without a budget. If gradients cannot do it, they do not point "
        "anywhere.",
        "The gradient is lost, flat or wrong. See the flags on gradients; trust no number of this audit "
        "but those of black-box attacks.",
    ),
    "no-better-than-noise": Kind(
        "error",
        "From two times the budget on, up to where something breaks, gradient attacks break no more images "
        "than as many random points.",
        "A gradient that carries information beats noise easily there. This is not tested where noise "
        "leaves too few images for a significant outcome, nor on images of less than 16 values, which "
        "random points search as well.",
        "As for not-broken-at-eps-1.",
    ),
    "black-box-beats-white-box": Kind(
        "error",
        "Black-box attacks broke images that no gradient attack breaks, not even a second one with 100 "
        "steps: significantly more than half a point.",
        "An attacker who knows everything cannot be weaker than one who knows only outputs: the gradients"
        " are masked.",
        "Find out what hides them; until then the real robustness is lower than reported.",
    ),
    "random-without-eot": Kind(
        "error",
        "The model is random, and an attack was made without averaging over its noise.",
        "Single gradients of a noisy model point nowhere in particular, and a single draw says little: an "
        "attack that stops at the first wrong draw counts luck as success, and misses inputs that are wrong "
        "more often.",
        "Use `spikeguard audit`, which averages and scores on fresh draws, or pass --eot.",
    ),
    "spikes-unreached": Kind(
        "error",
        "The distance to the threshold could not be read in some spike functions, and the model's own "
        "gradient does not pass them.",
        "Then no gradient attack reaches the layers before them: that images survive says little.",
        "As for spikes-unread.",
    ),
    "zero-gradient": Kind(
        "warning",
        "The model's own gradient is exactly zero for more than 5 % of the images.",
        "Attacks with this gradient do nothing there. Other estimators were used; compare what they found.",
        "Nothing, if other estimators break these images. In a report, do not quote PGD with the model's own"
        " gradient.",
    ),
    "locked-gradient": Kind(
        "warning",
        "The model's own gradient differs from that of its forward pass without detach, no_grad, rounding,"
        " clipping and saturation.",
        "Something in the backward pass cuts or bends the gradient. It may be meant (a detached reset) or"
        " may hide the network.",
        "Compare the share that attacks with BPDA broke.",
    ),
    "spikes-unread": Kind(
        "warning",
        "The distance to the threshold could not be read in some spike functions.",
        "Gradients with other surrogates are guesses there, so that attacks may be weaker than on the same "
        "network written otherwise.",
        "The evidence names the functions. Write the spike as one comparison in torch, as a custom function "
        "of the membrane or of the distance to the threshold; Reading spikes lists what is read.",
    ),
    "saturated-logits": Kind(
        "warning",
        "For more than half of the images softmax is exactly 1 in float32.",
        "The right class then drops out of the gradient of cross-entropy, and what is left may be zero. The "
        "margin losses of the suite do not need it.",
        "Do not judge this model by attacks on cross-entropy alone.",
    ),
    "masking": Kind(
        "warning",
        "Attacks with the model's own gradient overstate its accuracy by more than 5 points against attacks "
        "with other gradients or none.",
        "What they leave and the worst case takes is masking: the network hides from its own gradient, not "
        "from an attacker.",
        "Quote the worst case. To harden the network, craft training inputs with other surrogates too.",
    ),
    "not-converged": Kind(
        "warning",
        "The second half of the local search's queries (without one: of the longest attack's steps) broke "
        "more than half a point.",
        "More steps would break more.",
        "Run with more effort, and quote the number as the upper bound that it is.",
    ),
    "more-steps-weaker": Kind(
        "warning",
        f"An attack with twice the steps is significantly weaker (paired test, p < {ALPHA}).",
        "Stronger attacks must not be weaker: the gradient misleads, or step sizes do not fit.",
        "Compare the members of the suite; the worst case counts.",
    ),
    "pgd-weaker-than-fgsm": Kind(
        "warning",
        f"PGD is significantly weaker than FGSM (paired test, p < {ALPHA}).",
        "A sign of gradients that are right only near the image, or of masking.",
        "Compare attacks with other surrogates.",
    ),
    "apgd-weaker-than-pgd": Kind(
        "warning",
        f"APGD is significantly weaker than PGD with as many steps (paired test, p < {ALPHA}).",
        "APGD expects the loss to rise along the gradient; where it does not, the gradient is not that of"
        " the loss.",
        "Trust neither; compare the members with other gradients, and check the network's surrogate.",
    ),
    "eot-weaker": Kind(
        "warning",
        "Averaging gradients over the model's noise makes the attack significantly weaker.",
        "It should help. Perhaps the noise is not the model's only randomness.",
        "Check how the model draws its random numbers.",
    ),
    "attack-failed": Kind(
        "warning",
        "A member of the suite failed on some or all of its images.",
        "What it would have broken there is not known.",
        "The message names the reason.",
    ),
    "witness-lost": Kind(
        "warning",
        "Claimed successes did not hold when checked again at another batch size in float32, and were not"
        " counted.",
        "A few are rounding. Many mean that the model's outputs depend on the batch or on chance.",
        "Check whether the model is deterministic.",
    ),
    "broken-by-nan": Kind(
        "warning",
        "Inputs that count as broken make the model give values that are not finite.",
        "The model overflows or divides by 0 there. It is no answer, so the sample is broken, but another "
        "fault than a wrong class.",
        "Find where the values arise (a logarithm, a division, float16) and bound them; then audit again.",
    ),
    "clean-accuracy-low": Kind(
        "warning",
        "Clean accuracy is hardly better than chance.",
        "A network that knows little cannot lose much.",
        "Check the labels, the order of classes, the normalization.",
    ),
    "budget-unused": Kind(
        "warning",
        "No attack found its best point near the border of its budget.",
        "Perhaps eps or the images are in other units than meant.",
        "Images must lie in [0, 1] and be normalized inside the model.",
    ),
    "tied-scores": Kind(
        "info",
        "On more than 5 % of the images two classes or more share the highest score, so that the order of "
        "the classes decides.",
        "Counts and rates of spikes take few values. An image that ties counts as right if its class comes "
        "first, and an attack that only reaches a tie may count as a break: both say little about the "
        "network.",
        "Read out membranes or more steps, so that scores differ (`sg.wrap(model, reduce=...)`), or quote "
        "the share of ties beside the number.",
    ),
    "few-images": Kind(
        "info",
        "Fewer images than the effort is meant for.",
        "The interval is wide.",
        "Use more images before comparing networks.",
    ),
    "random-model": Kind(
        "info",
        "The model is random at inference.",
        "Every gradient was averaged over draws; each image counts by the share of 100 fresh draws that "
        "are right at the chosen input.",
        "Nothing. Quote it as what it is.",
    ),
    "black-box-first": Kind(
        "info",
        "Some images were broken by black-box attacks only, too few or not beyond a second attack.",
        "White-box attacks of this effort were a little too short there.",
        "More effort.",
    ),
}


def flag(id: str, detail: str = "", **evidence: object) -> Flag:
    """A flag of a known kind; ``detail`` ends its message.

    >>> from spikeguard.auditing.flags import flag
    >>> flag("few-images", "(5 images)", images=5).message
    'Fewer images than the effort is meant for. (5 images)'
    """
    kind = KINDS[id]
    return Flag(id, kind.level, kind.says + (f" {detail}" if detail else ""), evidence)


def sorted_by_level(flags: Sequence[Flag]) -> tuple[Flag, ...]:
    """Errors first, then warnings; otherwise as they were raised."""
    order = ("error", "warning", "info")
    return tuple(sorted(flags, key=lambda f: order.index(f.level)))
