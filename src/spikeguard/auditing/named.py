"""Members of suites by their settings, which give them their ids and titles."""

from __future__ import annotations

from spikeguard import attacks
from spikeguard.auditing.member import ADAPTIVE, LOCAL, OWN, Member
from spikeguard.gradients import ASSG, Estimator
from spikeguard.records.schema import Settings
from spikeguard.surrogates import Atan, Triangle


def sapgd(
    steps: int,
    strength: float,
    shape: Atan | Triangle,
    loss: str = "ce",
    warm: bool = False,
    start_from_first: bool = False,
    restarts: int = 1,
) -> Member:
    """SA-PGD with ASSG."""
    law = type(shape).__name__.lower()
    marks = [("first", start_from_first), ("margin", loss == "margin"), ("warm", warm)]
    starts = f"x{restarts}" if restarts > 1 else ""
    id = f"sapgd{steps}{starts}-assg-{law}{strength:g}" + "".join(f"-{m}" for m, on in marks if on)
    title = (
        f"SA-PGD-{steps}{f' x {restarts}' if restarts > 1 else ''}, ASSG {law} {strength:g}"
        f"{' from the first potentials' if start_from_first else ''}"
        f"{', margin loss' if loss == 'margin' else ''}{', warm start' if warm else ''}"
    )
    settings: Settings = {"steps": steps, "loss": loss, **({"restarts": restarts} if restarts > 1 else {})}
    gradient = ASSG(strength, shape, start_from_first)
    return Member(id, ADAPTIVE, attacks.sapgd, settings, gradient, warm=warm, title=title)


def targeted(steps: int, targets: int) -> Member:
    """SA-PGD with ASSG at the nearest other classes."""
    settings: Settings = {"rule": "sapgd", "steps": steps, "targets": targets, "loss": "margin"}
    title = f"SA-PGD-{steps}, ASSG, {targets} target classes"
    return Member(
        f"sapgd{steps}-assg-targeted{targets}", ADAPTIVE, attacks.targeted, settings, ASSG(), title=title
    )


def pgd(
    steps: int, family: str, name: tuple[str, str], gradient: Estimator | None, needs: str = ""
) -> Member:
    """PGD with another gradient; ``name``: the end of its id and of its title."""
    settings: Settings = {"steps": steps, "restarts": 1, "loss": "ce"}
    id, title = f"pgd{steps}-{name[0]}", f"PGD-{steps}, {name[1]}"
    exact = family == OWN
    return Member(id, family, attacks.pgd, settings, gradient, needs=needs, exact=exact, title=title)


def block_search(queries: int, more: int = 0) -> Member:
    """The local search from the best points so far."""
    id, title = f"block{queries}", f"block search-{queries}"
    settings: Settings = {"queries": queries}
    if more:
        id, title, settings = f"{id}-{more}", f"{title}, {more} more within reach", {**settings, "more": more}
    return Member(id, LOCAL, attacks.block_search, settings, warm=True, title=title)
