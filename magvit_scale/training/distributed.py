"""Processes, devices and DeepSpeed engines. The only module that imports deepspeed (spec: DeepSpeed sections 1, 2,
7).
"""

import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from magvit_scale.config import OptimConfig, Refusal, RunConfig


def _prepare_environment() -> None:
    """DeepSpeed reads these once, at its import."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # What it compiles stays with this environment's torch, and is compiled with this environment's ninja.
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix, "torch_extensions")))
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    # It warns wherever there is no GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


_prepare_environment()
import deepspeed  # noqa: E402

OURS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
        "optimizer", "scheduler", "bf16", "fp16", "data_types")  # fmt: skip
"""Keys of DeepSpeed's file that our configuration decides."""


@dataclass(frozen=True)
class Ranks:
    """This process among the others."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes logs, pictures and exports."""
        return self.rank == 0


def start() -> Ranks:
    """Joins the process group that torchrun, the deepspeed launcher, srun or slurm/job.py describe in the environment.

    A lone process becomes a world of one. Collective: every rank must call, once.
    """
    if "RANK" not in os.environ:
        # DeepSpeed looks for all five; nobody listens at the address.
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # On a CPU a converging model's gradients become denormal numbers, and products with them take twice as long.
    torch.set_flush_denormal(True)
    has_gpu = torch.cuda.is_available()
    backend = "nccl" if has_gpu else "gloo"
    if not dist.is_initialized():
        if os.environ["WORLD_SIZE"] == "1":
            # A store in memory: no port to find, and none that an earlier group of this process still holds.
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        deepspeed.init_distributed(dist_backend=backend, verbose=False)
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def stop() -> None:
    """Leaves the process group. Collective."""
    if dist.is_initialized():
        deepspeed.comm.destroy_process_group()


def build_engine(
    model: nn.Module, groups: Sequence[Sequence[nn.Parameter]], run: RunConfig, optim: OptimConfig, ranks: Ranks
) -> Any:
    """Wraps a model and its AdamW in a DeepSpeed engine.

    Args:
        model: on any device; moved to the rank's.
        groups: parameters with weight decay, then those without.
        run: batch size, precision and the path of DeepSpeed's file.
        optim: the optimiser; the learning rate is set before each step by `set_learning_rate`.
        ranks: of `start`.

    Raises:
        Refusal: DeepSpeed's file contradicts our configuration or asks for what this trainer cannot do.
    """
    # A torch optimiser object: DeepSpeed's own AdamW by name would compile CUDA code even on a CPU.
    with_decay, without_decay = groups
    chosen = [(with_decay, optim.weight_decay), (without_decay, 0.0)]
    optimizer = torch.optim.AdamW(
        [{"params": list(parameters), "weight_decay": decay} for parameters, decay in chosen if parameters],
        lr=optim.learning_rate,
        betas=optim.betas,
    )
    settings = _deepspeed_settings(run, optim, ranks)
    engine, *_ = deepspeed.initialize(model=model.to(ranks.device), optimizer=optimizer, config=settings)
    return engine


def set_learning_rate(engine: Any, learning_rate: float) -> None:
    """Sets the rate of the next update in every parameter group."""
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate


def mean_over_ranks(value: Tensor) -> Tensor:
    """Collective: the mean of a tensor over all ranks."""
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def any_over_ranks(flag: bool, device: torch.device) -> bool:
    """Collective: True where any rank says True, so that all ranks act together."""
    total = torch.tensor(float(flag), device=device)
    dist.all_reduce(total)
    return bool(total > 0)


def barrier() -> None:
    """Collective: waits for all ranks."""
    dist.barrier()


def _deepspeed_settings(run: RunConfig, optim: OptimConfig, ranks: Ranks) -> dict[str, Any]:
    path = Path(run.deepspeed)
    if not path.is_file():
        raise Refusal(f"run.deepspeed={run.deepspeed}: no such file; give the path of a DeepSpeed JSON")
    try:
        settings = json.loads(path.read_text())
    except ValueError as error:
        raise Refusal(f"{path}: {error}; expected DeepSpeed's settings as JSON") from error
    if not isinstance(settings, dict):
        raise Refusal(f"{path}: holds a {type(settings).__name__}, expected DeepSpeed's settings as a JSON object")
    if contradictions := sorted(set(settings) & set(OURS)):
        raise Refusal(f"{path}: {contradictions[0]} is set from our configuration; take it out of DeepSpeed's file")
    if run.global_batch_size % ranks.world_size:
        raise Refusal(f"run.global_batch_size={run.global_batch_size} does not divide over {ranks.world_size} ranks")
    stage = settings.get("zero_optimization", {}).get("stage", 0)
    if stage == 3:
        raise Refusal(f"{path}: ZeRO stage 3 partitions the weights that EMA and r1 read whole; use stage 0, 1 or 2")
    if run.precision == "bf16" and (ranks.device.type == "cpu" or stage == 0):
        raise Refusal("run.precision=bf16 needs a GPU and ZeRO stage 1 or 2; use run.precision=fp32")
    return settings | {
        "train_batch_size": run.global_batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optim.gradient_clipping,
        "bf16": {"enabled": run.precision == "bf16"},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1_000_000_000,
    }
