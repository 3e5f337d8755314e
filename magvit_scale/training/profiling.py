"""A trace of a few steps on request, by torch's profiler: what ran when on a rank, and its ten hottest operators."""

from pathlib import Path
from types import TracebackType

import torch
from torch.profiler import ProfilerAction, ProfilerActivity, profile

from magvit_scale.files import write_text

NUM_OPERATORS = 10


class Profile:
    """Traces steps `first` to `last` of this rank, both included, numbered as metrics.jsonl does: the first is 1.

    Writes `folder`/rank_00000.json.gz, for Perfetto or chrome://tracing, and rank_00000.txt. The step before the first
    warms the tracer up; all others run without it. Changes no result.

    Args:
        folder: of the run's traces.
        rank: of this process.
        steps: (first, last); None traces nothing.
        start: steps completed before this start; a trace that lies behind it is not made again.
    """

    def __init__(self, folder: Path, rank: int, steps: tuple[int, int] | None, start: int = 0):
        self.path, self.steps, self.completed = folder / f"rank_{rank:05d}", steps, start
        self._profiler: profile | None = None

    def __enter__(self) -> "Profile":
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def step_done(self) -> None:
        """After every optimiser step."""
        self.completed += 1
        if self._profiler is None:
            self._begin()
            return
        self._profiler.step()
        if self._action() is ProfilerAction.NONE:
            self._end()

    def _begin(self) -> None:
        if self._action() is ProfilerAction.NONE:
            return
        self._profiler = profile(
            activities=_activities(), schedule=lambda _: self._action(), on_trace_ready=self._write, acc_events=True
        )
        # The number that stands over the first step in the trace.
        self._profiler.step_num = self.completed + 1
        self._profiler.start()

    def _action(self) -> ProfilerAction:
        """What to do during the next step."""
        step = self.completed + 1
        if self.steps is None or not self.steps[0] - 1 <= step <= self.steps[1]:
            return ProfilerAction.NONE
        if step < self.steps[0]:
            return ProfilerAction.WARMUP
        return ProfilerAction.RECORD if step < self.steps[1] else ProfilerAction.RECORD_AND_SAVE

    def _end(self) -> None:
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None

    def _write(self, profiler: profile) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(f"{self.path}.json.gz")
        order = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=order, row_limit=NUM_OPERATORS, max_name_column_width=60)
        write_text(self.path.with_suffix(".txt"), table)


def _activities() -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
