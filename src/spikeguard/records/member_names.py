"""Ids of the suite's members, and the names they had in version 0.1 and in records of schema 1.

Random numbers of a member are keyed by its old name, so that its results stay the same.
"""

from __future__ import annotations

OLD_NAMES = {
    "noise": "noise",
    "fgsm": "FGSM",
    "pgd20": "PGD-20",
    "pgd40x2": "PGD-40 x 2",
    "pgd1000x5": "PGD-1000 x 5",
    "mi20": "MI-20",
    "apgd50": "APGD-50",
    "apgd50-targeted": "APGD-T-50",
    "cw100": "C&W-100",
    "pgd20-per-step": "PGD-20 per step",
    "pgd10-straight-through": "PGD-10 straight-through",
    "pgd10-rectangle": "PGD-10 rectangle",
    "pgd20-pdsg": "PGD-20 PDSG",
    "pgd20-random-surrogate": "PGD-20 by lot",
    "pgd20-atan-reset-detached": "PGD-20 Atan(4), reset detached",
    "pgd20-atan-reset-kept": "PGD-20 Atan(4), reset kept",
    "pgd20-hart": "PGD-20 HART",
    "pgd20-rga": "PGD-20 RGA",
    "pgd20-bptr": "PGD-20 BPTR",
    "pgd20-mean-field": "PGD-20 mean field",
    "pgd20-soft-spikes": "PGD-20 soft spikes",
    "pgd20-noise-free": "PGD-20 noise-free copy",
    "pgd10-nes": "PGD-10 NES",
    "sapgd20-assg-atan0.435": "SA-PGD-20 ASSG atan 0.435 ce",
    "sapgd20-assg-triangle0.8": "SA-PGD-20 ASSG triangle 0.8 ce",
    "sapgd20-assg-targeted3": "SA-PGD-20 ASSG towards 3",
    "sapgd30-threshold-first": "SA-PGD-30 pulled",
    "sapgd40-assg-atan0.435-first": "SA-PGD-40 ASSG atan 0.435 seen ce",
    "sapgd40-assg-atan0.435-first-margin": "SA-PGD-40 ASSG atan 0.435 seen margin",
    "sapgd40-atan4-margin": "SA-PGD-40 Atan(4) margin",
    "sapgd40-bpda-margin": "SA-PGD-40 unlocked margin",
    "sapgd50-assg-targeted9": "SA-PGD-50 ASSG towards 9",
    "sapgd50-assg-atan0.435-first-margin-warm": "SA-PGD-50 ASSG atan 0.435 seen margin warm",
    "sapgd100-assg-atan0.35": "SA-PGD-100 ASSG atan 0.35 ce",
    "sapgd100-assg-atan0.435": "SA-PGD-100 ASSG atan 0.435 ce",
    "sapgd100-assg-atan0.435-first": "SA-PGD-100 ASSG atan 0.435 seen ce",
    "sapgd100-assg-atan0.435-first-margin": "SA-PGD-100 ASSG atan 0.435 seen margin",
    "sapgd100-assg-triangle0.8": "SA-PGD-100 ASSG triangle 0.8 ce",
    "sapgd100-assg-triangle1.6": "SA-PGD-100 ASSG triangle 1.6 ce",
    "sapgd100x3-assg-atan0.435": "SA-PGD-100 x 3 ASSG atan 0.435 ce",
    "sapgd100x3-assg-atan0.435-first": "SA-PGD-100 x 3 ASSG atan 0.435 seen ce",
    "sapgd100x3-assg-triangle1.6": "SA-PGD-100 x 3 ASSG triangle 1.6 ce",
    "sapgd1000-assg-atan0.435": "SA-PGD-1000 ASSG atan 0.435 ce",
    "apgd20-bpda-targeted3": "APGD-20 unlocked towards 3",
    "autoattack-apgd-ce": "AutoAttack APGD-CE",
    "autoattack-apgd-t": "AutoAttack APGD-T",
    "autoattack-fab-t": "AutoAttack FAB-T",
    "autoattack-square": "AutoAttack Square",
    "autoattack-apgd-ce-eot": "AutoAttack APGD-CE, EOT",
    "autoattack-apgd-dlr-eot": "AutoAttack APGD-DLR, EOT",
    "random-search1000": "random search-1000",
    "square200": "Square-200",
    "square1000": "Square-1000",
    "square5000": "Square-5000",
    "rays500": "RayS-500",
    "rays1000": "RayS-1000",
    **{
        f"pgd10-ensemble-{name.replace(' ', '-').lower()}": f"PGD-10 ensemble {name}"
        for name in (
            *(f"triangle {width}" for width in ("0.25", "0.5", "1.0", "2.0", "3.0")),
            *(f"exponential 0.3 {slope}" for slope in ("0.5", "1.0", "2.0")),
            *(f"exponential {slope}" for slope in ("0.5", "1.0", "2.0")),
            *(f"rectangle {width}" for width in ("0.25", "0.5", "1.0", "2.0", "4.0")),
            *("straight-through", "BPTR", "ReLU twin"),
        )
    },
}
IDS = {old: new for new, old in OLD_NAMES.items()}


def id_of(name: str) -> str:
    """The id of a member that has an old name; a name of the user's own stays what it is."""
    return IDS.get(name, name)


def transfer_key(number: int, network: str) -> str:
    """What the random numbers of the attack with the gradients of another network depend on."""
    return f"PGD-40 through network {number} ({network})"
