"""What real gloo ranks send and compute per step, beside the law of ZeRO.

Every collective passes PyTorch's dispatcher, where its operation and sizes are read; seconds on one machine would say
nothing about a network.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.laws import sent_bytes, sequence_length, zero_bytes
from benchmarks.measure import cpu_seconds
from magvit_scale.commit.transformer import CommitTransformer, decayed_parameters
from magvit_scale.config import OptimConfig, RunConfig, TransformerConfig
from magvit_scale.lifetime import leaves_at_once
from magvit_scale.training import distributed, engines
from slurm.job import free_port

WORLDS, STAGES, BATCH, STEPS = (1, 2, 4), (0, 1, 2, 3), 8, 3
MODEL = TransformerConfig(
    num_layers=2, hidden_size=384, mlp_dim=1536, num_heads=6, latent_shape=(4, 4, 4), codebook_size=1024,
    num_classes=16, dropout=0.0,
)  # fmt: skip
"""Whose matrices are above the 100,000 values below which ZeRO 3 leaves a parameter whole on every rank."""
MIB = 2**20
COLLECTIVES = {
    "allreduce_": "all_reduce", "allreduce_coalesced_": "all_reduce", "reduce_": "reduce", "broadcast_": "broadcast",
    "allgather_": "all_gather", "_allgather_base_": "all_gather", "allgather_into_tensor_coalesced_": "all_gather",
    "reduce_scatter_": "reduce_scatter", "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter",
}  # fmt: skip


class CollectiveMeter(TorchDispatchMode):
    """Adds up the bytes of every collective that is called while it is entered, by collective.

    Attributes:
        num_bytes: of whole tensors: before a scatter, after a gather.
        calls: how many.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Counts it where it is a collective, and runs it."""
        if func.namespace == "c10d" and (name := COLLECTIVES.get(func._overloadpacket.__name__)):
            # A gather's and a scatter's arguments hold the whole once and a rank's part once: the whole is the largest.
            sizes = [sum(leaf.nbytes for leaf in tree_leaves(arg) if isinstance(leaf, Tensor)) for arg in args[:2]]
            self.num_bytes[name] += max(sizes)
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))


def measure_worlds() -> dict[str, Mapping[str, Any]]:
    """A table of all stages and world sizes."""
    found = {world: run_world(world) for world in WORLDS}
    rows = {
        f"ZeRO {stage}, {world} rank{'s' * (world > 1)}": found[world][stage] for stage in STAGES for world in WORLDS
    }
    return {f"Ranks: a small transformer, {BATCH} samples over all ranks": rows}


def run_world(world: int) -> list[dict[str, str]]:
    """A row per stage, of the rank that sends most."""
    with tempfile.TemporaryDirectory() as folder:
        port = str(free_port())
        ranks = [_start(rank, world, port, folder) for rank in range(world)]
        if any(list(map(subprocess.Popen.wait, ranks))):
            raise RuntimeError(f"{world} ranks: one failed; its traceback is above")
        return _rows([json.loads(path.read_text()) for path in sorted(Path(folder).glob("rank.*"))])


def _start(rank: int, world: int, port: str, folder: str) -> "subprocess.Popen[bytes]":
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.growth_ranks", folder]
    return subprocess.Popen(command, env={**os.environ, **place, **meeting})


def _rows(ranks: list[list[dict[str, Any]]]) -> list[dict[str, str]]:
    world, rows = len(ranks), []
    for stage, of_stage in zip(STAGES, zip(*ranks, strict=True), strict=True):
        sent = max(sum(sent_bytes(name, size, world) for name, size in own["bytes"].items()) for own in of_stage)
        law = zero_bytes(stage, world, of_stage[0]["parameters"])
        seconds = sum(own["cpu_s"] for own in of_stage) / BATCH
        calls = ", ".join(f"{count} {name}" for name, count in of_stage[0]["calls"].items())
        rows.append({
            "law, MiB sent per rank and step": f"{law / MIB:.2f}",
            "sent / law": f"{sent / law:.2f}" if law else "-",
            "CPU-s per sample": f"{seconds:.3f}",
            "collectives of a step": calls or "-",
        })  # fmt: skip
    return rows


def be_a_rank(folder: Path) -> None:
    """This rank's part: bytes of the third step of every stage, and CPU time of three more."""
    ranks = distributed.start()
    found = [measure_stage(stage, ranks) for stage in STAGES]
    (folder / f"rank.{ranks.rank}").write_text(json.dumps(found))
    distributed.barrier()
    distributed.stop()


def measure_stage(stage: int, ranks: Any) -> dict[str, Any]:
    """What a step costs this rank."""
    torch.manual_seed(0)
    model = CommitTransformer(MODEL)
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    run = RunConfig(folder="none", steps=1, global_batch_size=BATCH, deepspeed=f"configs/deepspeed/zero{stage}.json")
    engine = engines.build_engine("transformer", model, decayed_parameters(model), run, OptimConfig(), ranks)
    sequence = torch.zeros(BATCH // ranks.world_size, sequence_length(MODEL), dtype=torch.int64)

    def step() -> None:
        engine.backward(engine(sequence).logsumexp(-1).mean())
        engine.step()

    step()
    step()
    with CollectiveMeter() as meter:
        step()
    begun = cpu_seconds()
    for _ in range(STEPS):
        step()
    seconds = (cpu_seconds() - begun) / STEPS
    engine.deepspeed.destroy()
    return {"parameters": parameters, "bytes": meter.num_bytes, "calls": meter.calls, "cpu_s": seconds}


if __name__ == "__main__":
    with leaves_at_once():
        be_a_rank(Path(sys.argv[1]))
