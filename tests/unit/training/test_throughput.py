"""Throughput by a clock that a test turns."""

import re
from pathlib import Path

import pytest
import torch

from magvit_scale.training import throughput as module
from magvit_scale.training.throughput import Throughput, progress_words


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def run(
    throughput: Throughput, clock: Clock, steps: int, wait_s: float, work_s: float, flops: float | None = None
) -> None:
    for _ in range(steps):
        with throughput.waiting():
            clock.now += wait_s
        clock.now += work_s
        throughput.step_done(["loss/total"], flops)


def of_window(metrics: dict[str, float]) -> dict[str, float]:
    of_run = ("perf/memory_peak_gb", "perf/rank_hours")
    return {name: value for name, value in metrics.items() if name not in of_run}


def test_the_means_of_a_window() -> None:
    clock = Clock()
    throughput = Throughput(12, world_size=3, frames_per_sample=16, peak_flops=5e12, clock=clock)
    run(throughput, clock, steps=1, wait_s=0.5, work_s=1.5, flops=4e12)
    run(throughput, clock, steps=3, wait_s=0.5, work_s=1.5)
    assert of_window(throughput.metrics()) == {
        "perf/samples_per_s": 6.0,
        "perf/samples_per_s_per_rank": 2.0,
        "perf/frames_per_s": 96.0,
        "perf/tflops": 2.0,
        "perf/mfu": 0.4,
        "perf/step_s": 2.0,
        "perf/data_wait_s": 0.5,
        "perf/data_wait_share": 0.25,
    }


def test_each_window_stands_for_itself() -> None:
    clock = Clock()
    throughput = Throughput(8, clock=clock)
    run(throughput, clock, steps=3, wait_s=1.0, work_s=1.0)
    throughput.metrics()
    run(throughput, clock, steps=2, wait_s=0.0, work_s=4.0)
    found = throughput.metrics()
    assert (found["perf/step_s"], found["perf/data_wait_s"], found["perf/samples_per_s"]) == (4.0, 0.0, 2.0)


def test_samples_and_checkpoints_are_in_no_figure() -> None:
    clock = Clock()
    throughput = Throughput(8, clock=clock)
    run(throughput, clock, steps=2, wait_s=0.25, work_s=0.75)
    with throughput.paused():
        clock.now += 100.0
    run(throughput, clock, steps=2, wait_s=0.25, work_s=0.75)
    found = throughput.metrics()
    assert (found["perf/step_s"], found["perf/data_wait_share"]) == (1.0, 0.25)


def test_hours_are_of_all_ranks_and_of_the_whole_run() -> None:
    clock = Clock()
    throughput = Throughput(8, world_size=4, hours_before=2.5, clock=clock)
    for hours in (3.5, 4.5):  # a quarter of an hour on each of four ranks, twice
        run(throughput, clock, steps=2, wait_s=50.0, work_s=100.0)
        with throughput.paused():
            clock.now += 600.0
        assert throughput.metrics()["perf/rank_hours"] == hours


def test_what_is_not_known_has_no_name() -> None:
    clock = Clock()
    throughput = Throughput(1, clock=clock)
    run(throughput, clock, steps=1, wait_s=0.0, work_s=1.0)
    assert not {"perf/frames_per_s", "perf/tflops", "perf/mfu"} & set(throughput.metrics())
    run(throughput, clock, steps=1, wait_s=0.0, work_s=2.0, flops=3e12)
    found = throughput.metrics()
    assert found["perf/tflops"] == 1.5
    assert "perf/mfu" not in found


def test_steps_are_counted_until_each_kind_of_them_has_been() -> None:
    throughput, counted = Throughput(1, clock=Clock()), []
    for names in (["a"], ["a"], ["a", "b"], ["a"], ["a"], ["b", "a"], ["a"], ["a", "b"], ["a"]):
        counted.append(throughput.counts_next)
        throughput.step_done(names, 1.0 if counted[-1] else None)
    assert counted == [True, False, False, True, True, True, False, False, False]


def test_operations_are_those_of_the_steps_that_were_done() -> None:
    """As with a penalty in every third step, seen before it could be counted."""
    clock = Clock()
    throughput = Throughput(1, clock=clock)
    rates = []
    for step in range(9):
        has_penalty = (step + 1) % 3 == 0
        flops = (7e12 if has_penalty else 1e12) if throughput.counts_next else None
        clock.now += 2.0
        throughput.step_done(["a", "b"] if has_penalty else ["a"], flops)
        if has_penalty:
            rates.append(throughput.metrics()["perf/tflops"])
    assert rates == [0.5, 1.5, 1.5]  # at first by the steps without


def test_a_kind_that_was_not_counted_goes_for_one_that_was() -> None:
    clock = Clock()
    throughput = Throughput(1, clock=clock)
    run(throughput, clock, steps=1, wait_s=0.0, work_s=2.0, flops=3e12)
    throughput.metrics()
    clock.now += 1.0
    throughput.step_done(["loss/total", "loss/r1"])
    assert throughput.metrics()["perf/tflops"] == 3.0


def test_a_window_without_a_step_says_nothing_and_goes_on() -> None:
    clock = Clock()
    throughput = Throughput(1, clock=clock)
    clock.now += 1.0
    assert throughput.metrics() == {}
    run(throughput, clock, steps=1, wait_s=0.0, work_s=2.0)
    assert throughput.metrics()["perf/step_s"] == 3.0


def test_a_gpu_is_waited_for_at_a_log_and_around_a_pause_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, waits = Clock(), []

    def synchronize(device: torch.device) -> None:
        waits.append(device)
        clock.now += 10.0

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3_000_000_000)
    throughput = Throughput(1, device=torch.device("cuda", 0), clock=clock)
    run(throughput, clock, steps=5, wait_s=0.0, work_s=1.0)
    assert waits == []
    with throughput.paused():
        clock.now += 100.0
    assert len(waits) == 2
    found = throughput.metrics()
    assert len(waits) == 3
    # What was queued before the pause and before the log is the steps' own time; what the pause queued is not.
    assert found["perf/step_s"] == (5 + 10 + 10) / 5
    assert found["perf/memory_peak_gb"] == 3.0


def test_memory_on_a_cpu_is_the_kernels_peak_of_this_process() -> None:
    found = module.peak_memory_gb(torch.device("cpu"))
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak is not None
    assert found == pytest.approx(int(peak[1]) * 1024 / 1e9, rel=0.02)


def test_a_progress_line_has_rate_wait_and_mfu() -> None:
    metrics = {"perf/samples_per_s": 1234.5, "perf/data_wait_share": 0.0149, "perf/mfu": 0.415, "perf/step_s": 1.0}
    assert progress_words(metrics) == {"samples/s": "1.23k", "data": "1%", "mfu": "42%"}
    assert progress_words({"loss/total": 1.0}) == {}
