"""What code can set for the whole process, and how to put it back."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable

import torch

Undo = Callable[[], None]


def process_kept() -> Undo:
    """Puts back the states of random generators and torch's settings, as they are now."""
    generators, settings = _generators(), _settings()

    def back() -> None:
        generators()
        settings()

    return back


def _generators() -> Undo:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    cpu, own = torch.get_rng_state(), random.getstate()
    numpy = sys.modules.get("numpy")
    arrays = None if numpy is None else numpy.random.get_state()

    def back() -> None:
        torch.set_rng_state(cpu)
        random.setstate(own)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        if numpy is not None:
            numpy.random.set_state(arrays)

    return back


def _settings() -> Undo:
    kind, filters, threads = torch.get_default_dtype(), list(warnings.filters), torch.get_num_threads()
    precision, anomaly = torch.get_float32_matmul_precision(), torch.is_anomaly_enabled()
    strict, warns = torch.are_deterministic_algorithms_enabled(), _only_warns()
    cudnn = (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic)
    numpy = sys.modules.get("numpy")
    errors = {} if numpy is None else numpy.geterr()

    def back() -> None:
        torch.set_default_dtype(kind)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if torch.get_float32_matmul_precision() != precision:
            torch.set_float32_matmul_precision(precision)
        torch.autograd.set_detect_anomaly(anomaly)
        if (torch.are_deterministic_algorithms_enabled(), _only_warns()) != (strict, warns):
            torch.use_deterministic_algorithms(strict, warn_only=warns)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = cudnn
        if list(warnings.filters) != filters:
            warnings.filters[:] = filters  # type: ignore[index]
        if numpy is not None:
            numpy.seterr(**errors)

    return back


def _only_warns() -> bool:
    return bool(torch.is_deterministic_algorithms_warn_only_enabled())
