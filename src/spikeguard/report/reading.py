"""What the demo's numbers say, in plain words. Every sentence is chosen and filled by the record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def reading(record: Mapping[str, Any]) -> list[str]:
    """Paragraphs that say what improved for real and what was masking."""
    by_role = {n["role"]: n for n in record["networks"]}
    vanilla, control, tgo = by_role["vanilla"], by_role["control"], by_role["tgo"]
    low, high = record["eps"][0], record["eps"][-1]

    def worst(network: Mapping[str, Any], eps: str) -> float:
        return 100 * float(network["attacks"][eps]["worst_case"]["accuracy"])

    def own(network: Mapping[str, Any], eps: str) -> float:
        return 100 * float(network["attacks"][eps]["alone"]["PGD-20"]["accuracy"])

    gain, over_control = worst(tgo, low) - worst(vanilla, low), worst(tgo, low) - worst(control, low)
    apparent, hidden = own(tgo, low) - own(vanilla, low), own(tgo, low) - worst(tgo, low)
    noise = 100 * 1.96 * (2 * 0.25 / record["images"]) ** 0.5  # 95 % of differences of two shares stay inside
    longer = tgo["seconds"] / max(vanilla["seconds"], 1e-9)
    lost = 100 * (vanilla["clean"]["accuracy"] - tgo["clean"]["accuracy"])
    fewer = 100 * (1 - tgo["neighbours"]["mean"] / vanilla["neighbours"]["mean"])
    said = [
        f"At {low}, PGD-20 with the training surrogate credits TGO with {own(tgo, low):.1f} %, {_more(apparent)} than vanilla. The worst "
        f"case over all attacks leaves {worst(tgo, low):.1f} %, {_more(gain)} than vanilla under the same attacks. "
        + (
            f"So {hidden:.1f} points of what the training surrogate reports for TGO are masking: the attack failed, not the network held."
            if hidden >= 1
            else "The training surrogate and the worst case agree within a point: no masking shows at this budget."
        ),
        f"TGO keeps {fewer:.0f} % fewer potentials within {record['delta']:g} of the threshold. Scaling vanilla's batch-norm gains by "
        f"{control['factor']:.2f} reaches the same share with nothing guarded, at {100 * control['clean']['accuracy']:.1f} % clean and "
        f"{worst(control, low):.1f} % in the worst case. "
        + (
            f"TGO stands {over_control:.1f} points above that control, so its gain is not a matter of scale."
            if over_control > noise
            else f"TGO stands {over_control:.1f} points above that control, which sampling of {record['images']} images alone could explain."
        ),
        f"The price: {lost:.1f} points of clean accuracy and {longer:.2f} times the training time."
        if lost >= 0
        else f"TGO is {-lost:.1f} points more accurate on clean images and takes {longer:.2f} times the training time.",
    ]
    if worst(tgo, high) < 20:
        said.append(
            f"At {high} TGO is left with {worst(tgo, high):.1f} % (vanilla {worst(vanilla, high):.1f} %): neither is safe there. "
            "Without adversarial training a network may resist small disturbances, not large ones."
        )
    said.append(
        "All of these are upper bounds: a stronger attack can only lower them. "
        "This suite is short; it is meant to take minutes, not to settle a claim."
    )
    return said


def _more(points: float) -> str:
    return f"{abs(points):.1f} points {'more' if points >= 0 else 'less'}"
