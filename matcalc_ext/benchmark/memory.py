"""What a call has allocated at once on the CPU, by replaying what torch's profiler saw."""

import os

from torch.profiler import ProfilerActivity, profile

from .measure import Call


def peak_of(function: Call) -> int:
    """Bytes of torch's allocations at their highest, beside what was there before the call.

    The buffers that matcalc_ext's threads keep are not among them: see _C.cpu_scratch_bytes.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else each profile writes two lines
    # acc_events: without it torch 2.11 warns of a second cycle, of which there is none.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        result = function()
    del result
    assert seen.profiler is not None
    assert seen.profiler.kineto_results is not None
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
