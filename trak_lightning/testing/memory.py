"""Measure how much memory a piece of code needs."""

from collections.abc import Callable
from typing import Any

import torch


def peak_allocated_bytes(function: Callable[[], Any], device: torch.device | str = "cpu") -> int:
    """Return the peak of torch's allocations while `function` runs, above what was allocated before.

    It is counted from the allocator's own records, so that it is the same in every run.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    now = peak = 0
    for change in _changes(function):
        now += change
        peak = max(peak, now)
    return peak


def held_bytes(function: Callable[[], Any]) -> int:
    """Return the bytes that torch allocated on the CPU in `function` and has not freed when it returns, its result included."""
    kept: list[Any] = []
    return sum(_changes(lambda: kept.append(function())))


def _changes(function: Callable[[], Any]) -> list[int]:
    """Return allocations (positive) and releases (negative) on the CPU, in order."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns())]
