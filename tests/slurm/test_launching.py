"""What reaches the cluster: chains, arrays, sweeps, and the code and configuration of the moment of submission."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from slurm import snapshot
from tests.integration.tiny_runs import TinyRuns
from tests.slurm.chains import REPOSITORY, Chain, command, eventually
from tests.slurm.cluster import Cluster

ChainOf = Callable[..., Chain]
PROGRAM = "tests.slurm.stage_programs"


def test_a_queued_job_runs_what_was_submitted_whatever_is_edited_meanwhile(
    chain_of: ChainOf, tmp_path: Path, cluster: Cluster
) -> None:
    config = tmp_path / "program.yaml"
    config.write_text("word: submitted\n")
    told = {"setup": ["export TOLD=setup"], "python": f"env TOLD=$TOLD,python {sys.executable}"}
    stage = {"program": PROGRAM, "configs": [str(config)]}
    chain = chain_of(first=stage, second=stage | {"resources": told})
    others = cluster.run("sbatch", "--parsable", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=sleep 600")
    cluster.wait(others, ("RUNNING",))
    said = chain.launch()
    assert "2 of 2 stages submitted" in said
    said = command("slurm.launch", str(chain.write()), status=1)
    assert f"stage first is already SLURM job {chain.job('first')}" in said
    eventually("reasons to wait", lambda: {"(Resources)", "(Dependency)"} <= set(chain.describe().split()))
    config.write_text("word: edited\n")
    cluster.run("scancel", "--signal=KILL", "--full", others)
    chain.finished("second")
    code, *said_by_program = (chain.root / "second").read_text().splitlines()
    assert said_by_program == ["setup,python", "word: submitted"]
    assert Path(code).is_relative_to(chain.root / "stages" / "code")
    assert (Path(code).parent / "magvit_scale/cli.py").read_bytes() == Path(
        REPOSITORY, "magvit_scale/cli.py"
    ).read_bytes()
    assert snapshot.path_of(chain.root / "stages" / "code") == Path(code).parent


def test_what_follows_on_several_nodes_waits_for_all_of_them(chain_of: ChainOf) -> None:
    then = {"program": PROGRAM, "overrides": ["output={root}/then", "needs={root}/first.slow"]}
    first = {"program": PROGRAM, "nodes": 2, "overrides": ["slow_rank=1"], "then": [then]}
    chain = chain_of(first=first)
    chain.launch()
    assert chain.finished("first")["NumNodes"] == "2"
    assert (chain.root / "then").exists()


def test_ranks_that_wait_between_programs_end_with_the_one_that_dies_and_the_job_starts_again(
    chain_of: ChainOf,
) -> None:
    then = [{"program": PROGRAM, "alone": True, "overrides": ["output={root}/then", "dies_once={root}/died"]}]
    chain = chain_of(
        first={
            "program": PROGRAM,
            "nodes": 2,
            "then": [*then, {"program": PROGRAM, "overrides": ["output={root}/last"]}],
        }
    )
    chain.launch()
    chain.finished("first")
    assert len(chain.events("first", "start")) == 2
    (end, _) = chain.events("first", "end")
    assert end["why"].startswith("a rank or node was lost (srun ended with 137)")
    assert (chain.root / "last").exists()


def test_a_refusal_between_programs_fails_the_job_and_is_named(chain_of: ChainOf) -> None:
    refused = {
        "program": "data_prep.list_videos",
        "alone": True,
        "overrides": ["videos=/nonexistent", "output={root}/m"],
    }
    chain = chain_of(
        first={
            "program": PROGRAM,
            "nodes": 2,
            "then": [refused, {"program": PROGRAM, "overrides": ["output={root}/last"]}],
        }
    )
    chain.launch()
    chain.cluster.wait(chain.job("first"), ("FAILED",))
    (end,) = chain.events("first", "end")
    assert not end["goes_on"]
    assert "/nonexistent" in end["why"]


def test_what_refuses_its_input_ends_and_so_does_what_waits_for_it(chain_of: ChainOf) -> None:
    chain = chain_of(
        first={"program": "data_prep.list_videos", "overrides": ["videos=/nonexistent"]},
        second={"program": PROGRAM},
    )
    chain.launch()
    chain.cluster.wait(chain.job("first"), ("FAILED",))
    chain.cluster.wait(chain.job("second"), ("CANCELLED",))
    (end,) = chain.events("first", "end")
    assert not end["goes_on"]
    assert "/nonexistent" in end["why"]
    status = chain.describe()
    assert "rank 0 on node" in status
    assert "/nonexistent" in status
    assert "data_prep.list_videos: " in command("slurm.logs", str(chain.root), "first")


def test_what_a_program_does_not_take_is_refused_before_anything_is_queued(chain_of: ChainOf) -> None:
    chain = chain_of(only={"program": "data_prep.list_videos", "overrides": ["vidoes=x"]})
    said = command("slurm.launch", str(chain.write()), status=1)
    assert said.startswith("slurm.launch: stage only: data_prep.list_videos: vidoes=x: Key 'vidoes' not in")
    assert chain.cluster.jobs() == []


def test_arrays_share_the_work_and_a_sweep_ends_in_a_table(
    chain_of: ChainOf, tiny_runs: TinyRuns, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    source = [f"manifest={tiny_runs.folder}/manifest.jsonl", "size_px=16", "encoding=raw", "videos_per_shard=2"]
    train = tiny_runs.commit(root / "train", stage=1, steps=4)[1:]
    chain = chain_of(
        shards={"program": "data_prep.write_shards", "overrides": [*source, "num_workers=1"], "array": 3},
        train={"program": "magvit_scale.train_commit", "overrides": train},
    )
    chain.stages["train"]["overrides"] = train
    chain.launch("sweep.train.optim.learning_rate=[1e-3,1e-2]")
    chain.finished("train_table")
    assert (root / "shards/dataset.json").read_bytes() == (tiny_runs.folder / "clips/dataset.json").read_bytes()
    lines = (root / "train_sweep/table.md").read_text().splitlines()
    assert lines[0].startswith("| run | step | loss/total |")
    assert {line.split("|")[1].strip() for line in lines[2:]} == {"learning_rate=0.001", "learning_rate=0.01"}
    logged = [json.loads((root / f"train_sweep/learning_rate={rate}/metrics.jsonl").read_text().splitlines()[-1])
              for rate in ("0.001", "0.01")]  # fmt: skip
    assert {line["step"] for line in logged} == {4}
    losses = [float(line.split("|")[3]) for line in lines[2:]]
    assert losses == pytest.approx(sorted(line["loss/total"] for line in logged), rel=1e-3)
    status = chain.describe()
    assert "shards.2" in status
    assert "train.1" in status


def test_an_element_of_an_array_starts_again_alone(chain_of: ChainOf, tmp_path: Path, cluster: Cluster) -> None:
    go, names = tmp_path / "go", ["only.0", "only.1", "only.2"]
    chain = chain_of(only={"program": PROGRAM, "overrides": [f"waits_for={go}"], "array": 3})
    chain.launch()
    eventually("three that wait", lambda: all(Path(f"{go}.{element}").exists() for element in range(3)))
    # The last one, whose own id is that of the whole array.
    cluster.run("scancel", "--signal=USR2", chain.job("only.2"))
    eventually("its second start", lambda: len(chain.events("only.2", "start")) == 2)
    go.touch()
    for name in names:
        chain.finished(name)
    assert [len(chain.events(name, "start")) for name in names] == [1, 1, 2]


def test_srun_alone_starts_the_ranks_of_a_run(cluster: Cluster, tiny_runs: TinyRuns, tmp_path: Path) -> None:
    arguments = tiny_runs.commit(tmp_path / "run", stage=2, steps=2)
    said = cluster.run(
        "srun", "--nodes=2", "--ntasks-per-node=2", "--mem=1G", sys.executable, "-m", "magvit_scale.cli", *arguments
    )
    assert "4 ranks" in (tmp_path / "run/log.txt").read_text(), said


def test_a_node_that_preflight_finds_unfit_is_left_out(
    trains: Callable[..., Chain], cluster: Cluster, tiny_runs: TinyRuns
) -> None:
    chain = trains(steps=4, tasks=2, resources={"preflight": True, "exclude_bad_nodes": True})
    folder = str(tiny_runs.folder / "tokens")
    cluster.run_on("node2", "mount", "--types=tmpfs", "tmpfs", folder)
    try:
        chain.launch()
        chain.finished("train")
    finally:
        cluster.run_on("node2", "umount", folder)
    assert [event["nodes"] for event in chain.events("train", "start")] == [["node1", "node2"], ["node1", "node3"]]
    first, _ = chain.events("train", "end")
    assert first["why"] == "preflight found node2 unfit"


def test_dry_run_shows_the_script_that_sbatch_gets(chain_of: ChainOf) -> None:
    chain = chain_of(only={"program": PROGRAM, "nodes": 2, "array": 2, "resources": {"setup": ["true 'a b'"]}})
    said = chain.launch("--dry-run")
    assert "#SBATCH --nodes=2" in said
    assert "#SBATCH --array=0-1%2" in said
    assert "#SBATCH --signal=USR2@10" in said
    assert "true 'a b'" in said
    assert not chain.root.exists()
    script = said.partition("== batch script of only ==\n")[2]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_logs_can_be_followed(chain_of: ChainOf, tmp_path: Path) -> None:
    go = tmp_path / "go"
    chain = chain_of(only={"program": PROGRAM, "overrides": [f"waits_for={go}"]})
    chain.launch()
    eventually("a log", lambda: any(chain.stage("only").logs.glob("*_0_log.err")))
    go.touch()
    chain.finished("only")
    command("slurm.logs", str(chain.root), "--follow")
