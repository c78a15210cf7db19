"""When C may fork.

If it does while another thread has the GIL, that is never released in the
child. If a thread waits for it, CPython's condition variable counts that thread
in the child too, and the child hangs in `pthread_cond_signal` or
`pthread_cond_wait`. Python's own fork makes new ones; no library can, and so
that is not what is tested.

A thread that waits for the GIL wakes every few milliseconds. A thread that goes on
sleeping while we do not hold the GIL waits for something else.
"""

from __future__ import annotations

import os
import threading
import time

from pooling.core.runtime.registry import pools


def let_others_come_to_rest() -> None:
    """Wait until no other thread has or wants the interpreter, nor will in the next moment."""
    audits = any(pool.engine.state.waiters for pool in pools())  # then the reaper wakes now and then
    began, before = time.monotonic(), None
    while True:
        now = _naps()
        if now is not None and now == before:
            if not audits or time.monotonic() > began + 0.5:
                return
        elif before is not None:
            audits = False  # the next one is a while away
        before = now
        time.sleep(0.02)


def _naps() -> dict[str, str] | None:
    """How often each other thread has gone to sleep; `None` if one is not asleep."""
    naps = {}
    for thread in os.listdir("/proc/self/task"):
        if thread == str(threading.get_native_id()):
            continue
        try:
            with open(f"/proc/self/task/{thread}/status") as lines:
                status = {name: rest.strip() for name, _, rest in (line.partition(":") for line in lines)}
        except OSError:
            return None  # it ended just now
        if not status["State"].startswith("S"):
            return None
        naps[thread] = status["voluntary_ctxt_switches"]
    return naps
