"""What a rank really holds under each ZeRO stage, beside the formula: `python -m benchmarks.partition`, two minutes.

Real gloo processes train a transformer of 15 million parameters. After a step and the next backward pass, each counts
the storages of all tensors that live: parameters, gradients, moments, and what DeepSpeed keeps for itself.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.measure import write_results
from benchmarks.memory import MIB, copies
from magvit_scale.commit.transformer import CommitTransformer, decayed_parameters
from magvit_scale.config import OptimConfig, RunConfig, TransformerConfig
from magvit_scale.lifetime import leaves_at_once
from magvit_scale.training import distributed, engines
from slurm.job import free_port

OUTPUT = Path(__file__).parent / "results" / "partition.json"
WORLDS, STAGES = (1, 2, 4), (0, 1, 2, 3)
MODEL = TransformerConfig(
    latent_shape=(4, 16, 16), codebook_size=1024, num_classes=101,
    num_layers=6, hidden_size=384, mlp_dim=1536, num_heads=6,
)  # fmt: skip
BATCH = 4
BUCKET = 4 * json.loads(Path("configs/deepspeed/zero3.json").read_text())["zero_optimization"]["reduce_bucket_size"]


def main() -> None:
    """Measures every stage at every world size and writes results/partition.json."""
    figures = {f"ZeRO {stage}, {world} rank{'s' * (world > 1)}": measure(stage, world) for stage in STAGES
               for world in WORLDS}  # fmt: skip
    note = (
        "MiB on the rank that holds most. The formula is that of benchmarks/memory.py: parameters, gradients, moments."
    )
    command = "python -m benchmarks.partition"
    write_results(OUTPUT, "Memory by ZeRO stage, measured", command, {"A small transformer, float32": figures}, note)
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")


def measure(stage: int, world: int) -> dict[str, str]:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        port = str(free_port())
        ranks = [start(stage, rank, world, port, Path(folder)) for rank in range(world)]
        if any(list(map(subprocess.Popen.wait, ranks))):
            raise RuntimeError(f"ZeRO {stage} on {world} ranks: a rank failed; its traceback is above")
        held = max(int(path.read_text()) for path in Path(folder).glob("held.*")) / MIB
        whole = int(Path(folder, "parameters").read_text()) / MIB
    formula = whole * copies(stage, world) + (BUCKET / MIB if stage == 3 else 0)
    return {"formula": f"{formula:.0f}", "measured": f"{held:.0f}", "measured / formula": f"{held / formula:.2f}"}


def start(stage: int, rank: int, world: int, port: str, folder: Path) -> "subprocess.Popen[bytes]":
    """A rank, which runs `hold`."""
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.partition", str(stage), str(folder)]
    return subprocess.Popen(command, env={**os.environ, **place, **meeting})


def hold(stage: int, folder: Path) -> None:
    """This rank's part: bytes that live between a backward pass and its step."""
    ranks = distributed.start()
    model = CommitTransformer(MODEL)
    (folder / "parameters").write_text(str(4 * sum(parameter.numel() for parameter in model.parameters())))
    run = RunConfig(
        folder=str(folder), steps=1, global_batch_size=BATCH, deepspeed=f"configs/deepspeed/zero{stage}.json"
    )
    engine = engines.build_engine("transformer", model, decayed_parameters(model), run, OptimConfig(), ranks)
    for is_last in (False, True):
        engine.backward(engine(torch.zeros(BATCH // ranks.world_size, 64, dtype=torch.int64)).float().mean())
        if not is_last:
            engine.step()
    gc.collect()
    tensors = [found for found in gc.get_objects() if isinstance(found, torch.Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    (folder / f"held.{ranks.rank}").write_text(str(sum(storages.values())))
    distributed.barrier()
    distributed.stop()


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        with leaves_at_once():
            hold(int(sys.argv[1]), Path(sys.argv[2]))
