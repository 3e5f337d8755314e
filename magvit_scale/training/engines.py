"""DeepSpeed engines around models. The only module that imports deepspeed (spec: DeepSpeed sections 1, 2, 7)."""

import io
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # which the first optimiser would import; our starter looks for no garbage during imports
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from magvit_scale.checkpointing import checkpoint_activations
from magvit_scale.config import OptimConfig, Refusal, RunConfig
from magvit_scale.precision import compute_in
from magvit_scale.training import distributed
from magvit_scale.training.engine import Engine
from magvit_scale.training.ranks import Ranks


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

_linear = F.linear
OURS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
        "optimizer", "scheduler", "bf16", "fp16", "torch_autocast", "data_types")  # fmt: skip
"""Keys of DeepSpeed's file that our configuration decides."""
SWITCH = "TORCHDYNAMO_DISABLE"
"""Of torch: what is given to the compiler stays as it is."""


@cache
def connect() -> None:
    """Lets DeepSpeed talk over the group that `distributed.start` has joined, until `distributed.stop`. Collective;
    `build_engine` does it where it has not been done. The first time on a machine it may compile for a minute.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # On a CPU it prints that it has built its communication.
    with redirect_stdout(io.StringIO()):
        deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)
    distributed.before_stop(_disconnect)


def _disconnect() -> None:
    # ZeRO 3 puts its own in its place for the whole process, which rounds otherwise.
    F.linear = _linear
    connect.cache_clear()
    deepspeed.comm.destroy_process_group()


def build_engine(
    name: str,
    model: nn.Module,
    groups: Sequence[Sequence[nn.Parameter]],
    run: RunConfig,
    optim: OptimConfig,
    ranks: Ranks,
) -> Engine:
    """Wraps a model and its AdamW in an engine. Collective.

    Args:
        name: of the network, for messages.
        model: on any device; moved to the rank's.
        groups: parameters with weight decay, then those without.
        run: batch size, precision and the path of DeepSpeed's file.
        optim: the optimiser; the learning rate is set before each step.
        ranks: of `start`.

    Raises:
        Refusal: DeepSpeed's file contradicts our configuration or asks for what this trainer cannot do.
    """
    settings = _deepspeed_settings(run, optim, ranks)
    connect()
    # A torch optimiser object: DeepSpeed's own AdamW by name would compile CUDA code even on a CPU.
    with_decay, without_decay = groups
    chosen = [(with_decay, optim.weight_decay), (without_decay, 0.0)]
    optimizer = torch.optim.AdamW(
        [{"params": list(parameters), "weight_decay": decay} for parameters, decay in chosen if parameters],
        lr=optim.learning_rate,
        betas=optim.betas,
        fused=ranks.device.type == "cuda",
    )
    model = compute_in(model.to(ranks.device), run.precision, ranks.device)
    checkpoint_activations(model, run.activation_checkpointing)
    if run.compile:
        model.compile()
    with _nothing_compiled():
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    return Engine(name, engine, run.precision, ranks)


@contextmanager
def _nothing_compiled() -> Iterator[None]:
    """To see whether it knows an optimiser DeepSpeed imports one of its own and has torch compile that: most of a
    second for what is never called. torch reads the switch where something is given to the compiler, as our model has
    been before.
    """
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = "1"
    try:
        yield
    finally:
        del os.environ[SWITCH]
        if before is not None:
            os.environ[SWITCH] = before


def zero_stage(path: str) -> int:
    """The stage in DeepSpeed's file. Any rank.

    Raises:
        Refusal: there is no such file, or it is none of DeepSpeed's.
    """
    return int(_read_settings(Path(path)).get("zero_optimization", {}).get("stage", 0))


def _read_settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise Refusal(f"run.deepspeed={path}: no such file; give the path of a DeepSpeed JSON")
    try:
        settings = json.loads(path.read_text())
    except ValueError as error:
        raise Refusal(f"{path}: {error}; expected DeepSpeed's settings as JSON") from error
    if not isinstance(settings, dict):
        raise Refusal(f"{path}: holds a {type(settings).__name__}, expected DeepSpeed's settings as a JSON object")
    return settings


def _deepspeed_settings(run: RunConfig, optim: OptimConfig, ranks: Ranks) -> dict[str, Any]:
    path, settings = run.deepspeed, _read_settings(Path(run.deepspeed))
    if contradictions := sorted(set(settings) & set(OURS)):
        raise Refusal(f"{path}: {contradictions[0]} is set from our configuration; take it out of DeepSpeed's file")
    if run.global_batch_size % (ranks.world_size * run.gradient_accumulation):
        raise Refusal(
            f"run.global_batch_size={run.global_batch_size} does not divide over {ranks.world_size} ranks with "
            f"run.gradient_accumulation={run.gradient_accumulation}"
        )
    zero = settings.get("zero_optimization", {})
    if zero.get("offload_param") or zero.get("offload_optimizer", {}).get("device") == "nvme":
        raise Refusal(f"{path}: only offload_optimizer to the CPU can be checkpointed; take the other offload out")
    if run.compile and zero.get("stage") == 3:
        raise Refusal(f"run.compile=true: ZeRO stage 3 of {path} would cut a compiled network up; use stage 0, 1 or 2")
    return settings | {
        "train_batch_size": run.global_batch_size,
        "gradient_accumulation_steps": run.gradient_accumulation,
        "gradient_clipping": optim.gradient_clipping,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # an offloaded torch AdamW needs no compiler
        "steps_per_print": 1_000_000_000,
    }
