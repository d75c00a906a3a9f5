"""How much memory a piece of code needs."""

from collections.abc import Callable
from typing import Any

import torch


def peak_allocated_bytes(function: Callable[[], Any], device: torch.device | str = "cpu") -> int:
    """The peak of what torch has allocated while `function` runs, above what was allocated before.

    Counted from the allocator's own records, so that it is the same in every run.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    results = profile.profiler.kineto_results
    changes = [event for event in results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak
