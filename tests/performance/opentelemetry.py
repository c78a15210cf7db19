"""What OpenTelemetry costs a checkout: not instrumented, collected as often as by default, and every second."""

from __future__ import annotations

from . import figures
from .harness import Plan, interleave
from .shared_metrics import Child, children
from .table import Column, Table, Target

__all__ = ["NAME", "run"]

NAME = "opentelemetry"
PAIRS = 5
DEFAULT = "on, collected every minute"
STATES = {"off": 0, DEFAULT: 60_000, "on, collected every second": 1000}

CHECKOUTS = """
import sys, time, pooling
pool = pooling.Pool(object, name="db", max_size=8)
def loop(times):
    for _ in range(times):
        with pool.acquire(): pass
loop(1000)
print("ready", flush=True)
interval = int(sys.stdin.readline())
# Without it, too: the modules and what they have allocated change the speed of a loop by some percent.
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, PeriodicExportingMetricReader
from pooling.observe.opentelemetry import instrument
class Nowhere(MetricExporter):
    def export(self, *args, **options): return MetricExportResult.SUCCESS
    def force_flush(self, timeout_millis=0): return True
    def shutdown(self, timeout_millis=0, **options): pass
provider = MeterProvider([PeriodicExportingMetricReader(Nowhere(), interval or 60_000)])
if interval:
    instrument(meter_provider=provider)
else:
    other = provider.get_meter("other").create_histogram("other")
    for _ in range(150_000):
        other.record(0.0, {"name": "db"})
loop(500_000)
provider.force_flush()  # what it may record at once has been recorded
print("set up", flush=True)
for line in sys.stdin:
    times = int(line)
    began = time.process_time()  # of all threads: what the reader does counts, and other processes do not
    loop(times)
    print((time.process_time() - began) / times * 1e9, flush=True)
"""


def run(plan: Plan) -> Table:
    """Time acquires and releases of an idle resource, so many that a collection is included."""
    times = plan.choose(full=2_000_000, quick=1_000_000)
    # Several of each: two processes that do the same differ, for as long as they live.
    names = {f"{state} {number}": state for number in range(PAIRS) for state in STATES}
    with children(CHECKOUTS, dict.fromkeys(names, "")) as processes:
        for child in processes:
            child.tell(str(STATES[names[child.name]]))
            child.hear()

        def measure(child: Child) -> float:
            child.tell(str(times))
            return float(child.hear())

        found = interleave(processes, plan.count(full=15, quick=5), measure).samples
    samples = {
        state: [figures.median(row) for row in zip(*(found[name] for name in names if names[name] == state))]
        for state in STATES
    }
    off = samples["off"]
    return Table(
        name=NAME,
        title=f"acquire + release of an idle resource with OpenTelemetry, CPU time of the process, {times:,} each",
        columns=(
            Column("name", "what"),
            Column("ns", "ns", ",.0f"),
            Column("ratio", "x off", ".3f"),
            Column("spread", "spread", ".0%"),
        ),
        rows=[
            {
                "name": state, "ns": figures.median(values), "ratio": figures.ratio(values, off),
                "spread": figures.spread(values),
            }
            for state, values in samples.items()
        ],
        targets=[Target(f"{DEFAULT} / off", figures.ratio(samples[DEFAULT], off), "<=", 1.03, " x")],
        notes=("a loop of leases always has more durations to record than the share of the time that they get",),
    )
