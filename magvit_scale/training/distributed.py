"""Processes, devices and DeepSpeed engines. The only module that imports deepspeed (spec: DeepSpeed sections 1, 2,
7).
"""

import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from magvit_scale.checkpointing import checkpoint_activations
from magvit_scale.config import OptimConfig, Refusal, RunConfig
from magvit_scale.freed_memory import keep_freed_memory
from magvit_scale.precision import compute_in
from magvit_scale.pretrained import shapes_of
from magvit_scale.training.engine import Engine
from magvit_scale.training.launched import complete_environment
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

Model = TypeVar("Model", bound=nn.Module)
_linear = F.linear
OURS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
        "optimizer", "scheduler", "bf16", "fp16", "torch_autocast", "data_types")  # fmt: skip
"""Keys of DeepSpeed's file that our configuration decides."""
GROUP_TIMEOUT = timedelta(hours=3)
"""torch ends a rank that waits for another so long; `run.hang_after_s` is shorter, and names the one that hangs."""


def start(store: dist.Store | None = None, timeout: timedelta = GROUP_TIMEOUT) -> Ranks:
    """Joins the process group that torchrun, the deepspeed launcher, srun or slurm/job.py describe in the environment.

    A lone process becomes a world of one. Collective: every rank must call, once.

    Args:
        store: where the ranks have met already; None meets at MASTER_ADDR and MASTER_PORT.
        timeout: how long a rank waits for another, in this call and in every collective.
    """
    complete_environment()
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # On a CPU a converging model's gradients become denormal numbers, and products with them take twice as long.
    torch.set_flush_denormal(True)
    has_gpu = torch.cuda.is_available()
    if not has_gpu:
        keep_freed_memory()
    backend = "nccl" if has_gpu else "gloo"
    if not dist.is_initialized():
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        if store is None and world_size == 1:
            # A store in memory: no port to find, and none that an earlier group of this process still holds.
            store = dist.HashStore()
        if store is not None:
            dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
        # On a CPU it prints that it has built its communication.
        with redirect_stdout(io.StringIO()):
            deepspeed.init_distributed(dist_backend=backend, verbose=False, timeout=timeout)
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def stop() -> None:
    """Leaves the process group. Collective."""
    # ZeRO 3 puts its own in its place for the whole process, which rounds otherwise.
    F.linear = _linear
    if dist.is_initialized():
        _cpu_group.cache_clear()
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
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    return Engine(name, engine, run.precision, ranks)


def mean_over_ranks(value: Tensor) -> Tensor:
    """Collective: the mean of a tensor over all ranks."""
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def any_over_ranks(*flags: bool) -> list[bool]:
    """Collective: for each flag True where any rank says True, so that all ranks act together. Waits for no GPU."""
    total = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(total, op=dist.ReduceOp.MAX, group=_cpu_group())
    return [bool(flag) for flag in total]


def gather(
    slices: Iterable[tuple[str, int, Tensor]], shapes: Mapping[str, torch.Size], ranks: Ranks
) -> dict[str, Tensor]:
    """Collective: joins what the ranks own to whole tensors on the main rank; the others get an empty dictionary.

    Args:
        slices: (name, first element, flat float32 view) of this rank's parts, as in a checkpoint.
        shapes: of the tensors that are wanted, in the same order on every rank.
        ranks: of `start`.
    """
    own: dict[str, list[tuple[int, Tensor]]] = {}
    for name, first, view in slices:
        own.setdefault(name, []).append((first, view))
    found = {}
    for name, shape in shapes.items():
        whole = torch.zeros(shape.numel(), device=ranks.device)
        for first, view in own.get(name, []):
            whole[first : first + view.numel()] = view
        # As whole numbers: adding zeros to them keeps every bit, also that of -0.0.
        dist.reduce(whole.view(torch.int32), dst=0)
        if ranks.is_main:
            found[name] = whole.reshape(shape)
    return found


def gather_model(build: Callable[[], Model], slices: Iterable[tuple[str, int, Tensor]], ranks: Ranks) -> Model | None:
    """Collective: what `build` builds, filled from the slices of all ranks, see `gather`.

    Returns:
        On the main rank the model in evaluation mode, float32, on its device; None on the others.
    """
    with torch.device("meta"):
        model = build()
    tensors = gather(slices, shapes_of(model), ranks)
    if not ranks.is_main:
        return None
    model.load_state_dict(tensors, assign=True)
    return model.eval()


@cache
def _cpu_group() -> Any:
    """A group that talks over the host: its answers do not wait for a GPU's queue."""
    return dist.new_group(backend="gloo") if dist.get_backend() != "gloo" else dist.group.WORLD


def tell_number(number: int) -> int:
    """Collective: the number that the main rank passes."""
    told = torch.tensor(number)
    dist.broadcast(told, 0, group=_cpu_group())
    return int(told)


def tell(text: str) -> str:
    """Collective: the text that the main rank passes."""
    data = np.frombuffer(text.encode(), np.uint8)
    told = torch.zeros(tell_number(len(data)), dtype=torch.uint8)
    if dist.get_rank() == 0:
        told.copy_(torch.tensor(data))
    dist.broadcast(told, 0, group=_cpu_group())
    return told.numpy().tobytes().decode()


def sum_over_ranks(value: Tensor) -> Tensor:
    """Collective: the sum of a tensor over all ranks."""
    total = value.detach().clone()
    dist.all_reduce(total)
    return total


def all_of(value: Tensor) -> Tensor:
    """Collective: the tensors of all ranks, of one shape, joined along their first axis in order of ranks."""
    parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, value.contiguous())
    return torch.cat(parts)


def barrier() -> None:
    """Collective: waits for all ranks."""
    dist.barrier()


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
