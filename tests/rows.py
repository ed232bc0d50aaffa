"""Rows of a study, made up."""


def told(group, row, seed, clean, robust):
    bits = {
        "right_clean": [float(k < 100 * clean) for k in range(100)],
        "right": [float(k < 100 * robust) for k in range(100)],
    }
    rest = {
        "masking": {"PGD-20": 0.4, "optimizer": 0.1, "gradient": 0.1, "rest": 0.0},
        "flags": [],
        "seconds": 1.0,
        "audit_seconds": 1.0,
        "validation_accuracy": clean,
    }
    rest["low"] = {"worst_case": {"accuracy": 0.5}}
    return {
        "group": group,
        "row": row,
        "seed": seed,
        "clean": {"accuracy": clean},
        "worst_case": {"accuracy": robust, "interval": [robust - 0.1, robust + 0.1]},
        **bits,
        **rest,
    }


def many(seeds, lift=0.05, start=0):
    """Two points of the frontier and a row ``lift`` above it, whose level differs from seed to seed."""
    cells = {}
    for seed in range(start, start + seeds):
        level = 0.02 * (seed % 3)
        cells[f"a{seed}"] = told("frontier", "AT 4/255", seed, 0.8, 0.2 + level)
        cells[f"b{seed}"] = told("frontier", "AT 8/255", seed, 0.6, 0.4 + level)
        cells[f"c{seed}"] = told("AT", "TGO", seed, 0.7, 0.3 + lift + level)
    return cells


def record_of(cells, **rest):
    """A study's record that holds these networks in its ranking and nothing else."""
    settings = {"epochs": 4, "ranked_on": 100, "scored_on": 200}
    wanted = [[c["group"], c["row"], c["seed"]] for c in cells.values()]
    return {
        "eps": 25 / 255,
        "low": 8 / 255,
        "settings": settings,
        "cells": cells,
        "confirmed": {},
        "test": {},
        "wanted": wanted,
        **rest,
    }
