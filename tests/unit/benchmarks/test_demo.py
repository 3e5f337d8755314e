"""The demo's time by stage, from the records of a run."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as torch_profile

from benchmarks.demo import by_stage, hottest, main, seconds_in_steps


def test_seconds_in_steps_leave_waiting_and_all_between_them_out() -> None:
    lines = [
        {"step": 10, "perf/step_s": 2.0, "perf/data_wait_s": 0.5},
        {"step": 10, "validation/CG": 4.0},
        {"step": 30, "perf/step_s": 1.0, "perf/data_wait_s": 0.0},
    ]
    assert seconds_in_steps(lines) == 10 * 1.5 + 20 * 1.0


def test_stages_come_in_their_order_with_their_shares(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "metrics.jsonl").write_text(json.dumps({"step": 10, "perf/step_s": 3, "perf/data_wait_s": 0}))
    for place, (name, seconds) in enumerate((("train", 40.0), ("b", 60.0))):
        (tmp_path / "stages" / f"{name}.started.json").write_text("{}")
        (tmp_path / "stages" / f"{name}.json").write_text(json.dumps({"seconds": seconds}))
        os.utime(tmp_path / "stages" / f"{name}.json", (place, place))
    (tmp_path / "stages" / "chain.json").write_text("{}")
    assert by_stage(tmp_path) == {
        "train": {"seconds": "40.0", "of the demo": "40.0%", "outside of its steps": "25.0%"},
        "b": {"seconds": "60.0", "of the demo": "60.0%", "outside of its steps": "no steps"},
    }


def test_the_profilers_table_is_read() -> None:
    profiler = torch_profile(activities=[ProfilerActivity.CPU], acc_events=True)
    with profiler, record_function("ProfilerStep*"):
        for _ in range(3):
            torch.mm(torch.ones(64, 64), torch.ones(64, 64))
    table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=10, max_name_column_width=60)
    rows = hottest(table)
    assert rows["aten::mm"]["calls"] == "3"
    assert rows["Python between them"]["calls"] == "1"
    assert 0 < float(rows["aten::mm"]["share"].removesuffix("%")) < 100


def test_a_folder_without_a_demo_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"vqgan_2d\.json is missing"):
        main([str(tmp_path)])
    with pytest.raises(SystemExit, match="found 0 arguments"):
        main([])
