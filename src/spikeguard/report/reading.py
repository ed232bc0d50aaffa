"""What the demo's numbers say, in plain words. The record chooses and fills every sentence."""

from __future__ import annotations

from spikeguard.records.studies import DemoNetwork, DemoRecord


def reading(record: DemoRecord) -> list[str]:
    """Paragraphs that say what improved for real and what was masking."""
    by_role = {n.role: n for n in record.networks}
    vanilla, control, noisy, tgo = (by_role[role] for role in ("vanilla", "control", "nlif", "tgo"))
    low, high = record.eps[0], record.eps[-1]

    def worst(network: DemoNetwork, eps: str) -> float:
        return 100 * network.attacks[eps].worst_case.value

    def own(network: DemoNetwork, eps: str) -> float:
        return 100 * network.attacks[eps].alone["pgd20"].value

    gain = worst(tgo, low) - worst(vanilla, low)
    over_control = worst(tgo, low) - max(worst(control, low), worst(noisy, low))
    apparent, gaps = own(tgo, low) - own(vanilla, low), [own(n, low) - worst(n, low) for n in (tgo, vanilla)]
    noise = 100 * 1.96 * (2 * 0.25 / record.images) ** 0.5  # 95 % of differences of two shares stay inside
    longer = tgo.seconds / max(vanilla.seconds, 1e-9)
    lost = 100 * (vanilla.clean.value - tgo.clean.value)
    fewer = 100 * (1 - tgo.neighbors.mean / vanilla.neighbors.mean)
    said = [
        f"At {low}, PGD-20 with the training surrogate says {own(tgo, low):.1f} % for TGO and "
        f"{own(vanilla, low):.1f} % for vanilla; the worst case "
        f"of the quick audit leaves {worst(tgo, low):.1f} % and {worst(vanilla, low):.1f} %. So that one "
        "attack overstates TGO by "
        f"{gaps[0]:.1f} points and vanilla by {gaps[1]:.1f}, and TGO's gain is {gain:.1f} points, where it "
        f"says {apparent:.1f}. "
        + (
            f"{gaps[0] - gaps[1]:.1f} points of TGO's apparent gain were masking: only the attack got worse."
            if gaps[0] > gaps[1]
            else "TGO hides no more from its training surrogate than vanilla does: by this short suite the "
            "gain is no masking."
        ),
        f"TGO keeps {fewer:.0f} % fewer potentials within {record.delta:g} of the threshold "
        f"({100 * tgo.neighbors.mean:.1f} % of them). Two controls separate its parts, each trained like "
        f"vanilla. From batch-norm gains of {control.factor:.2f} instead of 1, a network without a defense "
        f"ends with {100 * control.neighbors.mean:.1f} % there, {100 * control.clean.value:.1f} % clean and "
        f"{worst(control, low):.1f} % in the worst case: "
        f"{worst(control, low) - worst(vanilla, low):.1f} points come with scale alone. TGO's noise without "
        f"its loss: {100 * noisy.neighbors.mean:.1f} %, {100 * noisy.clean.value:.1f} % and "
        f"{worst(noisy, low):.1f} %. "
        + (
            f"TGO stands {over_control:.1f} points above the better of the two."
            if over_control > noise
            else f"TGO stands {over_control:.1f} points above the better of the two, which the choice of "
            f"{record.images} images alone could explain."
        ),
        f"The price: {lost:.1f} points of clean accuracy and {longer:.2f} times the training time (each "
        "with its compilation)."
        if lost >= 0
        else f"TGO is {-lost:.1f} points more accurate on clean images and took {longer:.2f} times the "
        "training time (each with its compilation).",
    ]
    if worst(tgo, high) < 20:
        said.append(
            f"At {high} TGO is left with {worst(tgo, high):.1f} %: it is not safe there. "
            "Without adversarial training a network may resist small disturbances, not large ones."
        )
    said.append(
        "All of these are upper bounds: a stronger attack can only lower them. "
        "This suite is short; it is meant to take minutes, not to settle a claim."
    )
    return said
