"""What the steps of a debug run spend their time on: a trace for chrome://tracing or Perfetto, and a small table."""

from __future__ import annotations

from pathlib import Path

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, schedule

from kdcluster.wording import count

WARM_UP = 2
"""Steps that are left out: the first ones make the optimizer's state, search and compile."""
DEAREST = 5
WIDTH = 44
"""Characters of an operation's name, so that a row fits 80 columns."""


class Trace:
    """Of the steps of this process, from where it is made to `finish`."""

    def __init__(self, folder: Path, device: torch.device, steps: int) -> None:
        """`steps` will be taken; the first two are left out, of two the first, of one none."""
        self.path = folder / "trace.json"
        self._on_gpu = device.type == "cuda"
        warm_up = min(WARM_UP, steps - 1)
        self._steps = steps - warm_up
        self._profiler = profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_gpu else [])],
            schedule=schedule(wait=0, warmup=warm_up, active=self._steps, repeat=1),
            acc_events=True,
        )
        self._profiler.start()

    def step(self) -> None:
        """A step is done."""
        self._profiler.step()

    def finish(self) -> str:
        """Write the trace; returns the operations that took most time of their own, on the device or else the CPU."""
        self._profiler.stop()
        aside = self.path.with_name(f".{self.path.name}")
        self._profiler.export_chrome_trace(str(aside))
        aside.replace(self.path)
        took = {
            op.key: (op.self_device_time_total if self._on_gpu else op.self_cpu_time_total, op.count)
            for op in self._profiler.key_averages()
            # A kernel is counted with the operation that launched it, and a step is no operation.
            if op.device_type == DeviceType.CPU and not op.key.startswith("ProfilerStep")
        }
        whole = sum(time for time, _ in took.values()) or 1
        where = f"self time on the {'GPU' if self._on_gpu else 'CPU'}"
        rows = [f"{where:<{WIDTH}} {'ms/step':>9} {'share':>6} {'calls':>7}"]
        for name, (time, calls) in sorted(took.items(), key=lambda op: -op[1][0])[:DEAREST]:
            short = name if len(name) <= WIDTH else f"{name[: WIDTH - 3]}..."
            ms, calls_a_step = time / 1000 / self._steps, calls / self._steps
            rows.append(f"{short:<{WIDTH}} {ms:>9.2f} {100 * time / whole:>4.0f} % {calls_a_step:>7.3g}")
        return "\n".join([*rows, f"trace of {count(self._steps, 'step')}: {self.path}"])
