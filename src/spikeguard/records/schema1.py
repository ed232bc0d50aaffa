"""Reading records of schema 1: their keys and member names become those of schema 2, their numbers stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from spikeguard.records.member_names import id_of

Old = Mapping[str, Any]
New = dict[str, Any]
FAMILIES = {"unlocked": "bpda"}


def upgraded(values: Old) -> New:
    """A record in today's keys. Records of schema 2 come back as they are."""
    kind = str(values.get("kind"))
    if kind == "training":  # its rows held what defenses measure beside the rest
        return {**{k: v for k, v in values.items() if k != "kept"}, **_training(values)}
    if values.get("schema", 1) != 1 or kind not in KINDS:
        return dict(values)
    return {"schema": 2, "kind": kind, **KINDS[kind](values)}


def _rest(values: Old, *without: str) -> New:
    """What keeps its key."""
    return {k: v for k, v in values.items() if k not in ("schema", "kind", *without)}


def _accuracy(old: Old, n: int) -> New:
    low, high = old.get("interval", (old["accuracy"], old["accuracy"]))
    return {"value": old["accuracy"], "low": low, "high": high, "n": old.get("images", n)}


def _budget(old: Old) -> New:
    ((norm, eps),) = old.items()
    return {"norm": norm, "eps": eps}


def _origin(old: Old) -> New:
    found = {k: old[k] for k in ("target", "data", "split", "recipe") if k in old}
    return found | {k: v for k, v in old.get("asked", {}).items() if k in ("data_dir", "images")}


ORIGIN = ("target", "data", "split", "recipe", "asked")


def _masking(old: Old | None) -> New | None:
    if old is None:
        return None
    return {k: old[k] for k in ("optimizer", "gradient", "rest")} | {
        "pgd20": old["PGD-20"],
        "worst_case": old["worst case"],
    }


def _member(old: Old, n: int) -> New:
    kept = ("attack", "settings", "gradient", "needs", "after", "failed", "seconds", "forwards", "backwards")
    alone = {"alone": _accuracy(old["alone"], n)} if "alone" in old else {}
    return {
        **{k: old[k] for k in (*kept, "record") if k in old},
        "id": id_of(old["name"]),
        "title": old["name"],
        "family": FAMILIES.get(old["family"], old["family"]),
        "attempted": old["met"],
        "broken": old["broke"],
        "first_by": old["first"],
        "only_this_family": old["only this family"],
        **alone,
    }


def _convergence(old: Old | None) -> New | None:
    if old is None:
        return None
    return {
        "member": id_of(old["member"]),
        "attempted": old["met"],
        "broken_by_step": old["broken by step"],
        "last_doubling": old["last doubling"],
    }


def _controls(old: Old | None) -> New | None:
    if old is None:
        return None
    second, found = old.get("second look"), {}
    if second is not None:
        found["second_attack"] = {
            "black_box_only": second["by black box only"],
            "images": second["images"],
            "left": second.get("left by the second look"),
            "share_low": second.get("lower bound of the share"),
        }
    if "restarts" in old:
        found["restarts"] = {"one": old["restarts"]["1"], "five": old["restarts"]["5"]}
    return {
        "images": old["images"],
        "zero_budget": old["nothing"],
        "full_budget": old["everything"],
        "against_noise": [_noise_row(row) for row in old["against noise"]],
        "pairs": [_pair(row) for row in old["pairs"]],
        "curve": old.get("curve"),
        "dead_surrogate_share": old.get("silent surrogate", {}),
        "survivors_with_gradient": old.get("survivors with a gradient", {}),
        **found,
    }


def _noise_row(old: Old) -> New:
    return {**_rest(old, "eps factor"), "eps_factor": old["eps factor"], "better": bool(old["better"])}


def _pair(old: Old) -> New:
    return {
        **{k: old[k] for k in ("stronger", "weaker", "p")},
        "only_weaker": old["only the weaker breaks"],
        "only_stronger": old["only the stronger breaks"],
        "left_by": old.get("left by"),
    }


def _fresh(old: Old) -> New:
    return {"held": old["held"], "witnesses": old["witnesses"], "wrong": old["wrong"]}


def _audit(old: Old) -> New:
    n = old["images"]
    same = ["suite", "seed", "images", "random_model", "scored_by", "verdict", "right", "machine"]
    same += ["batch_size", "digests", "flags", "left_out", "right_clean", "index", "witnesses"]
    new = {k: old[k] for k in same if k in old} | {
        "seed": old.get("seed"),
        "threat": _budget(old["threat"]),
        "clean": _accuracy(old["clean"], n),
        "worst_case": _accuracy(old["worst_case"], n),
        "members": [_member(row, n) for row in old["members"]],
        "first_by": old.get("first", []),
        "second_by": old.get("second", []),
        "origin": _origin(old),
        "masking": _masking(old.get("masking")),
        "mean_logits": old.get("of_mean_logits"),
        "without_family": {FAMILIES.get(k, k): v for k, v in old.get("without_each_family", {}).items()},
        "left_out": {id_of(k): v for k, v in old.get("left_out", {}).items()},
        "convergence": _convergence(old.get("convergence")),
        "controls": _controls(old.get("controls")),
        "cost": _total(old.get("cost", {})),
    }
    if "verified_in_fresh_process" in old:
        new["fresh_process"] = _fresh(old["verified_in_fresh_process"])
    if "merged_from" in old:
        new["merged_from"] = [
            {**part, "worst_case": _accuracy(part["worst_case"], n)} for part in old["merged_from"]
        ]
    return new


def _total(old: Old) -> New:
    new = _rest(old, "all_seconds")
    return new | ({"total_seconds": old["all_seconds"]} if "all_seconds" in old else {})


def _attack(old: Old) -> New:
    n = old["images"]
    same = ["attack", "settings", "seed", "images", "random_model", "scored_by", "machine", "right"]
    same += ["batch_size", "digests", "flags", "index", "witnesses"]
    costs = old.get("cost", {}).values()  # one of each member, and there is one member
    return {k: old[k] for k in same if k in old} | {
        "threat": _budget(old["threat"]),
        "clean": _accuracy(old["clean"], n),
        "worst_case": _accuracy(old["worst_case"], n),
        "first_by": old["first"],
        "origin": _origin(old),
        "cost": {k: sum(c[k] for c in costs) for k in ("seconds", "forwards", "backwards")} if costs else {},
    }


EPOCH = ("epoch", "loss", "task_loss", "penalty", "train_accuracy", "validation_accuracy", "seconds")


def epoch(old: Old) -> New:
    """The row of an epoch, which held what defenses measure beside the rest. Rows of schema 2 stay."""
    beside = {k: v for k, v in old.items() if k not in (*EPOCH, "measured")}
    return {
        **{k: v for k, v in old.items() if k in EPOCH},
        "measured": {**old.get("measured", {}), **beside},
    }


def _training(old: Old) -> New:
    new: New = {"schema": 2, "epochs": [epoch(row) for row in old.get("epochs", [])]}
    if "kept" in old:
        new["kept_accuracy"] = old["kept"]["validation_accuracy"]
    return new


def _demo(old: Old) -> New:
    if "networks" not in old:
        return _rest(old)
    return {**_rest(old, "networks"), "networks": [_demo_network(row) for row in old["networks"]]}


def _demo_network(old: Old) -> New:
    return {
        **_rest(old, "clean", "attacks"),
        "clean": _accuracy(old["clean"], 0),
        "attacks": {eps: _audit(row) for eps, row in old["attacks"].items()},
    }


def _study(old: Old) -> New:
    cells = old["cells"]
    new = {k: old[k] for k in ("settings", "eps", "low", "best", "most_robust", "finalists") if k in old}
    new |= {k: old[k] for k in ("chosen_on", "chosen_among") if k in old}
    for part, name in (
        ("cells", "cells"),
        ("confirmed", "confirmed"),
        ("test", "test"),
        ("looked_at", "full"),
    ):
        new[name] = {k: _study_row(row, cells.get(k, {})) for k, row in old.get(part, {}).items()}
    return new | {"planned": old.get("wanted", [])}


def _study_row(old: Old, ranked: Old) -> New:
    new = {k: old.get(k, ranked.get(k)) for k in ("group", "row", "seed")}
    new |= {k: old[k] for k in ("failed", "seconds", "validation_accuracy", "machine") if k in old}
    new |= {"fingerprint": old.get("made"), "low": _study_audit(old["low"]) if "low" in old else None}
    if "failed" in old:
        return {**new, "flags": old.get("flags", [])}
    return {**new, "audit": _study_audit(old)}


def _study_audit(old: Old) -> New | None:
    if "failed" in old:
        return None
    n = len(old["right"])
    return {
        **{k: old[k] for k in ("right", "right_clean", "flags", "suite", "members") if k in old},
        "clean": _accuracy(old["clean"], n),
        "worst_case": _accuracy(old["worst_case"], n),
        "masking": _masking(old["masking"]),
        "seconds": old["audit_seconds"],
    }


def _bench(old: Old) -> New:
    tasks: dict[str, Old] = old["tasks"]
    return {
        **_rest(old, "tasks"),
        "timed": {name: _timing(task) for name, task in tasks.items() if "median" in task},
        "memory": next((task for task in tasks.values() if "bytes" in task), None),
        "growth": next((task for task in tasks.values() if "curves" in task), None),
    }


def _timing(old: Old) -> New:
    if "dropping_faster" not in old:
        return dict(old)
    kept = {k: old[k] for k in ("eps", "survive", "same_outcome")}
    dropping = {**kept, "faster": old["dropping_faster"]}
    return {**_rest(old, *kept, "dropping_faster"), "dropping": dropping}


KINDS: dict[str, Callable[[Old], New]] = {
    "audit": _audit,
    "attack": _attack,
    "demo": _demo,
    "study": _study,
    "bench": _bench,
}
