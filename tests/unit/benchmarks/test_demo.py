"""The demo's time by stage, from the records of a run."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as torch_profile

from benchmarks.demo import by_stage, hottest, main, seconds_in_steps
from magvit_scale.config import Refusal


def test_seconds_in_steps_leave_waiting_and_all_between_them_out() -> None:
    lines = [
        {"step": 10, "perf/step_s": 2.0, "perf/data_wait_s": 0.5},
        {"step": 10, "validation/CG": 4.0},
        {"step": 30, "perf/step_s": 1.0, "perf/data_wait_s": 0.0},
    ]
    assert seconds_in_steps(lines) == 10 * 1.5 + 20 * 1.0


def note(root: Path, name: str, began: float, **ended: float) -> None:
    (root / "stages").mkdir(exist_ok=True)
    (root / "stages" / f"{name}.started.json").write_text(json.dumps({"time": began}))
    (root / "stages" / f"{name}.json").write_text(json.dumps(ended))


def test_stages_come_in_their_order_with_what_lies_outside_of_their_work(tmp_path: Path) -> None:
    note(tmp_path, "train", 100.0, time=139.0, main_seconds=36.0, seconds=38.0)
    note(tmp_path, "after", 140.0, time=200.0, main_seconds=57.0, seconds=59.0)
    (tmp_path / "stages" / "chain.json").write_text("{}")
    (tmp_path / "train").mkdir()
    logs = [
        {"step": 4, "perf/step_s": 3, "perf/data_wait_s": 0.5, "time": 117.0},
        {"step": 4, "time": 119.0},
        {"step": 8, "perf/step_s": 2, "perf/data_wait_s": 0, "time": 127.0},
        {"step": 8, "time": 130.0},
    ]
    (tmp_path / "train" / "metrics.jsonl").write_text("\n".join(map(json.dumps, logs)))
    (tmp_path / "train" / "export").mkdir()
    (tmp_path / "train" / "export" / "config.json").touch()
    os.utime(tmp_path / "train" / "metrics.jsonl", (130, 130))
    os.utime(tmp_path / "train" / "export" / "config.json", (132, 132))
    rows = by_stage(tmp_path)
    assert list(rows) == ["train", "after", "all"]
    assert rows["train"] == {  # from 105 to 132 it trained and wrote, and waited for two seconds
        "seconds": "40.0", "of the demo": "40.0%", "start": "3.0 s", "end": "1.0 s", "in its steps": "45.0%",
        "outside of its work": "37.5%",
    }  # fmt: skip
    assert rows["after"] == {
        "seconds": "60.0", "of the demo": "60.0%", "start": "3.0 s", "end": "0.0 s", "in its steps": "",
        "outside of its work": "5.0%",
    }  # fmt: skip
    assert (rows["all"]["seconds"], rows["all"]["outside of its work"]) == ("100.0", "18.0%")


def test_a_demo_that_has_not_recorded_its_times_is_refused(tmp_path: Path) -> None:
    note(tmp_path, "videos", 1.0, seconds=11.4)
    with pytest.raises(Refusal, match=r"videos\.json does not say when .* run `make demo` again"):
        by_stage(tmp_path)


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
    for name in ("vqgan_2d", "vqgan_3d", "commit", "results"):
        note(tmp_path, name, 1.0)
    (tmp_path / "stages" / "results.json").unlink()
    with pytest.raises(SystemExit, match=r"results\.json is missing"):
        main([str(tmp_path)])
    with pytest.raises(SystemExit, match="found 0 arguments"):
        main([])
