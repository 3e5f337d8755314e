"""What build_engine refuses, before anything is built; and engines one after the other."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from magvit_scale.config import OptimConfig, Refusal, RunConfig
from magvit_scale.training.engines import OURS, build_engine
from magvit_scale.training.ranks import Ranks
from tests.distributed.launching import REPOSITORY


def refuse(tmp_path: Path, settings: dict[str, Any] | None, *, world_size: int = 2, **run: Any) -> str:
    path = tmp_path / "deepspeed.json"
    if settings is not None:
        path.write_text(json.dumps(settings))
    model = nn.Linear(2, 2)
    whole = RunConfig(**{"folder": "", "steps": 1, "global_batch_size": 4, "deepspeed": str(path), **run})
    with pytest.raises(Refusal) as refused:
        build_engine(
            "model",
            model,
            ([], list(model.parameters())),
            whole,
            OptimConfig(),
            Ranks(0, world_size, torch.device("cpu")),
        )
    assert "\n" not in str(refused.value)
    return str(refused.value)


OFFLOAD = {"offload_param": {"device": "cpu"}}, {"offload_optimizer": {"device": "nvme", "nvme_path": "/tmp"}}


@pytest.mark.parametrize("zero", OFFLOAD)
def test_what_a_checkpoint_could_not_hold(tmp_path: Path, zero: dict[str, Any]) -> None:
    said = refuse(tmp_path, {"zero_optimization": {"stage": 3, **zero}})
    assert said.endswith("only offload_optimizer to the CPU can be checkpointed; take the other offload out")


def test_compiled_networks_under_stage_3(tmp_path: Path) -> None:
    said = refuse(tmp_path, {"zero_optimization": {"stage": 3}}, compile=True)
    assert said.endswith("would cut a compiled network up; use stage 0, 1 or 2")


@pytest.mark.parametrize("key", OURS)
def test_keys_that_our_configuration_decides(tmp_path: Path, key: str) -> None:
    said = refuse(tmp_path, {"zero_optimization": {"stage": 2}, key: 1})
    assert said == f"{tmp_path}/deepspeed.json: {key} is set from our configuration; take it out of DeepSpeed's file"


def test_a_batch_that_does_not_divide(tmp_path: Path) -> None:
    said = refuse(tmp_path, {}, world_size=2, gradient_accumulation=3)
    assert said == "run.global_batch_size=4 does not divide over 2 ranks with run.gradient_accumulation=3"


def test_a_missing_file(tmp_path: Path) -> None:
    said = refuse(tmp_path, None)
    assert said == f"run.deepspeed={tmp_path}/deepspeed.json: no such file; give the path of a DeepSpeed JSON"


@pytest.mark.parametrize("text", ["{'zero_optimization': 1}", "", "[1]"])
def test_a_deepspeed_file_that_is_no_json_object_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path, model = tmp_path / "deepspeed.json", nn.Linear(2, 2)
    path.write_text(text)
    run = RunConfig(folder="", steps=1, global_batch_size=4, deepspeed=str(path))
    with pytest.raises(Refusal, match=r"deepspeed\.json"):
        build_engine(
            "model", model, ([], list(model.parameters())), run, OptimConfig(), Ranks(0, 1, torch.device("cpu"))
        )


TWICE = """
import sys
from torch import nn, ones
from magvit_scale.config import OptimConfig, RunConfig
from magvit_scale.training import distributed, engines
for _ in range(2):
    ranks = distributed.start()
    model = nn.Linear(3, 1)
    run = RunConfig(folder="", steps=1, global_batch_size=1)
    engine = engines.build_engine("model", model, ([], list(model.parameters())), run, OptimConfig(), ranks)
    engine.backward(engine(ones(1, 3)).sum())
    engine.step()
    distributed.stop()
print("twice")
"""


@pytest.mark.distributed
def test_two_programs_can_train_one_after_the_other_in_a_process() -> None:
    """Neither DeepSpeed's handle of the first group nor the port of its store may be in the second one's way."""
    ended = subprocess.run(
        [sys.executable, "-c", TWICE], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.stdout.splitlines()[-1:] == ["twice"], ended.stderr[-2000:]


COMPILER = """
import os, sys
from torch import nn, ones
from magvit_scale.config import OptimConfig, RunConfig
from magvit_scale.training import distributed, engines
graphs, compile_module = [], nn.Module.compile
look = lambda graph, _: graphs.append(graph) or graph.forward
nn.Module.compile = lambda module: compile_module(module, backend=look)
ranks = distributed.start()
for before, is_compiled in ((None, False), ("0", True)):
    os.environ.update({engines.SWITCH: before} if before else {})
    model = nn.Linear(3, 1)
    run = RunConfig(folder="", steps=1, global_batch_size=1, compile=is_compiled)
    engine = engines.build_engine("model", model, ([], list(model.parameters())), run, OptimConfig(), ranks)
    engine(ones(1, 3))
    print(os.environ.get(engines.SWITCH), "torch._inductor.compile_fx" in sys.modules, len(graphs))
"""


@pytest.mark.distributed
def test_an_engine_compiles_our_model_nothing_of_deepspeeds_and_leaves_torchs_switch_as_it_was() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", COMPILER], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.stdout.splitlines()[-2:] == ["None False 0", "0 False 1"], ended.stderr[-2000:]
