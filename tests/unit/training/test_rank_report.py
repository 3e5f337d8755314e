"""Reports of ranks: what is kept, what is said."""

import json
from pathlib import Path
from typing import Any

from magvit_scale.training.rank_report import RankReport, assemble, report_path, summarize


def report(rank: int = 0, world_size: int = 3, **facts: Any) -> RankReport:
    defaults = {"host": f"node{rank}", "device_type": "cuda", "versions": {"torch": "2.15.0"}}
    return RankReport(rank=rank, world_size=world_size, **{**defaults, **facts})


def test_a_report_is_json_and_comes_back_equal(tmp_path: Path) -> None:
    original = report(2, problems=["no"], warnings=["well"], memory_gb=1.5, clock_offset_ms=-3.0, is_final=True)
    original.keep(str(tmp_path))
    assert RankReport.load((tmp_path / "rank00002.json").read_text()) == original
    assert RankReport.load(original.dump()) == original


def test_a_report_that_cannot_be_written_is_one_problem_however_often_it_is_tried(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ill = report()
    for _ in range(2):
        ill.keep(str(tmp_path / "file"))
    (problem,) = ill.problems
    assert problem.startswith(f"cannot write its report to {tmp_path}/file: ")


def test_what_must_be_the_same_on_all_ranks_is_named_where_it_is_not() -> None:
    first = report(0, versions={"torch": "2.15.0", "nccl": "2.27", "python": "3.11"})
    other = report(1, device_type="cpu", versions={"torch": "2.14.1", "python": "3.12"})
    other.compare(first)
    assert [problem.split(";")[0] for problem in other.problems] == [
        "works on a cpu device, rank 0 on cuda",
        "nccl None, rank 0 has 2.27",
        "torch 2.14.1, rank 0 has 2.15.0",
    ]
    assert [warning.split(";")[0] for warning in other.warnings] == ["python 3.12, rank 0 has 3.11"]
    first.compare(first)
    assert first.problems + first.warnings == []


def test_the_last_word_of_every_rank_counts(tmp_path: Path) -> None:
    arrived = {0: report(0).dump(), 1: report(1).dump()}
    final = {0: report(0, num_shards=5).dump()}
    zero, one, two = assemble(arrived, final, 3, 7.0, str(tmp_path))
    assert (zero.num_shards, zero.problems) == (5, [])
    assert one.problems[0].startswith("did not finish in 7 s; ")
    assert two.problems[0].startswith(f"did not come within 7 s and has left no report in {tmp_path}; ")


def test_an_absent_rank_that_was_started_is_known_by_its_report(tmp_path: Path) -> None:
    report(1, host="node7", problems=["cannot reach rank 0"]).keep(str(tmp_path))
    _, one = assemble({0: report(0).dump()}, {0: report(0).dump()}, 2, 7.0, str(tmp_path))
    assert (one.host, one.problems[0]) == ("node7", "cannot reach rank 0")
    assert one.problems[1].startswith("did not come within 7 s, though it was started; ")


def test_summary() -> None:
    well = report(0, device="GPU X", memory_gb=79.6, has_bf16=True, clock_offset_ms=0.0, all_reduce_ms=0.123,
                  all_reduce_gb_per_s=34.1, num_shards=8, warnings=["8 shards"])  # fmt: skip
    ill = report(1, device="GPU X", memory_gb=79.6, has_bf16=False, problems=["cannot write; look", "no shards; look"])
    absent = report(2, host="", problems=["did not come"])
    assert summarize([well, ill, absent]).splitlines() == [
        "torch 2.15.0",
        "rank  host   device  memory  bf16  clock    all-reduce  rate        shards",
        "0     node0  GPU X   80 GB   yes   +0.0 ms  0.12 ms     34.10 GB/s  8",
        "1     node1  GPU X   80 GB   no    -        -           -           -",
        "2     -      -       -       -     -        -           -           -",
        "warning: node0 (rank 0): 8 shards",
        "node1 (rank 1): cannot write; look",
        "node1 (rank 1): no shards; look",
        "rank 2: did not come",
        "3 problems, on 2 of 3 ranks",
    ]


def test_a_machine_alone_is_told_shortly() -> None:
    alone = report(0, 1, device="CPU Y")
    assert summarize([alone]).splitlines() == ["torch 2.15.0", "rank  host   device", "0     node0  CPU Y", "all well"]
    alone.problems.append("no")
    assert summarize([alone]).splitlines()[-2:] == ["node0: no", "1 problem"]


def test_a_report_holds_plain_values_under_stable_names(tmp_path: Path) -> None:
    report(3).keep(str(tmp_path))
    content = json.loads(report_path(tmp_path, 3).read_text())
    assert {"rank", "world_size", "host", "problems", "warnings", "is_final"} <= content.keys()
