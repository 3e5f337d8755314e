"""How fast a run is: samples and frames per second, the wait for data, memory, operations per second and MFU.

Times are wall times of the host between two logs, never of a single step: on a GPU a step is only queued when its call
returns, and waiting for it would slow the run. A log reads values from the GPU anyway, so there the clocks agree.
"""

import resource
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from tqdm import tqdm


class Throughput:
    """Measures a window of steps, from one `metrics()` to the next.

    Args:
        samples_per_step: over all ranks.
        world_size: ranks.
        device: this rank's.
        frames_per_sample: 0 where samples are no clips.
        peak_flops: operations per second that this rank could do (`peak.peak_flops`); 0 leaves MFU out.
        hours_before: of all ranks, `perf/rank_hours` of what the run had done before this start.
        clock: seconds; another one makes tests exact.
    """

    def __init__(
        self,
        samples_per_step: int,
        world_size: int = 1,
        device: torch.device | None = None,
        *,
        frames_per_sample: int = 0,
        peak_flops: float = 0.0,
        hours_before: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.samples_per_step, self.frames_per_sample, self.world_size = samples_per_step, frames_per_sample, world_size
        self.device = device or torch.device("cpu")
        self.peak_flops = peak_flops
        self.hours_before = hours_before
        self._clock, self._began = clock, clock()
        self._flops_of: dict[frozenset[str], float | None] = {}
        self._restart()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the call that fetches a batch: its time is the wait for data."""
        start = self._clock()
        yield
        self._waited_s += self._clock() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around all that is not training - samples, checkpoints: its time is in no figure."""
        self._finish_queued()
        start = self._clock()
        yield
        self._finish_queued()
        self._paused_s += self._clock() - start

    @property
    def counts_next(self) -> bool:
        """Whether the next step's operations should be counted: until each kind of step has been. A step that gives
        scalars of other names did other work.
        """
        return not self._flops_of or None in self._flops_of.values()

    def step_done(self, names: Collection[str], flops: float | None = None) -> None:
        """After every optimiser step.

        Args:
            names: of its scalars.
            flops: operations of it on this rank (`flops.count_flops`), if they were counted. A step of a kind that was
                not goes for one that was, so that the same names are logged wherever a run is interrupted.
        """
        kind = frozenset(names)
        self._flops_of[kind] = flops or self._flops_of.get(kind)
        self._kinds.append(kind)

    def metrics(self) -> dict[str, float]:
        """The means of the window that ends now, by TensorBoard name; starts the next one.

        Waits for the GPU, so it belongs where values are read anyway. The same names on every rank.

        Returns:
            `perf/step_s` of a whole step, data included, and `perf/data_wait_s` and `perf/data_wait_share` of it;
            `perf/samples_per_s` of all ranks together, `perf/samples_per_s_per_rank` and `perf/frames_per_s`;
            `perf/memory_peak_gb` of this rank, 10^9 bytes, since the process began: allocated on its GPU, or resident;
            `perf/tflops`, 10^12 operations per second of this rank, and `perf/mfu`, their share of the peak;
            `perf/rank_hours` of the run so far, hours times ranks (GPU hours, with a GPU a rank), samples and
            checkpoints included, and what an interruption undid left out. Nothing where no step was done.
        """
        self._finish_queued()
        if not self._kinds:
            return {}
        step_s = (self._clock() - self._start - self._paused_s) / len(self._kinds)
        waited_s, rates = self._waited_s / len(self._kinds), self._rates(step_s)
        self._restart()
        return rates | {
            "perf/step_s": step_s,
            "perf/data_wait_s": waited_s,
            "perf/data_wait_share": waited_s / step_s,
            "perf/memory_peak_gb": peak_memory_gb(self.device),
            "perf/rank_hours": self.hours_before + (self._clock() - self._began) * self.world_size / 3600,
        }

    def _rates(self, step_s: float) -> dict[str, float]:
        samples_per_s = self.samples_per_step / step_s
        rates = {"samples_per_s": samples_per_s, "samples_per_s_per_rank": samples_per_s / self.world_size}
        if self.frames_per_sample:
            rates["frames_per_s"] = samples_per_s * self.frames_per_sample
        if flops := self._flops_per_step():
            rates["tflops"] = flops / step_s / 1e12
        if flops and self.peak_flops:
            rates["mfu"] = flops / step_s / self.peak_flops
        return {f"perf/{name}": value for name, value in rates.items()}

    def _flops_per_step(self) -> float:
        counted = [flops for flops in map(self._flops_of.get, self._kinds) if flops]
        counted = counted or [flops for flops in self._flops_of.values() if flops]
        return sum(counted) / len(counted) if counted else 0.0

    def _finish_queued(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _restart(self) -> None:
        self._start = self._clock()
        self._waited_s, self._paused_s = 0.0, 0.0
        self._kinds: list[frozenset[str]] = []


def peak_memory_gb(device: torch.device) -> float:
    """Most memory so far in 10^9 bytes: allocated on a GPU, or resident of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def progress_words(metrics: Mapping[str, float]) -> dict[str, str]:
    """What a progress line has room for beside the bar's own steps per second and ETA; for `set_postfix`."""
    shown: dict[str, tuple[str, Callable[[float], str]]] = {
        "samples/s": ("perf/samples_per_s", tqdm.format_sizeof),
        "data": ("perf/data_wait_share", "{:.0%}".format),
        "mfu": ("perf/mfu", "{:.0%}".format),
    }
    return {word: form(metrics[name]) for word, (name, form) in shown.items() if name in metrics}
