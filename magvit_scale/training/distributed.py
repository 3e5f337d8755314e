"""The processes of a run, their devices, and what they tell each other (spec: DeepSpeed sections 1, 2, 7)."""

import itertools
import os
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from magvit_scale.freed_memory import keep_freed_memory
from magvit_scale.pretrained import shapes_of
from magvit_scale.training.launched import complete_environment
from magvit_scale.training.ranks import Ranks

Model = TypeVar("Model", bound=nn.Module)
GROUP_TIMEOUT = timedelta(hours=3)
"""torch ends a rank that waits for another so long; `run.hang_after_s` is shorter, and names the one that hangs."""
_at_stop: list[Callable[[], None]] = []
_num_groups = itertools.count()
"""Of several ranks that this process has joined, in step with the others."""


def start(store: dist.Store | None = None, timeout: timedelta = GROUP_TIMEOUT) -> Ranks:
    """Joins the process group that torchrun, the deepspeed launcher, srun or slurm/job.py describe in the environment.

    A lone process becomes a world of one. Collective: every rank must call, once.

    Args:
        store: where the ranks have met already; None meets at MASTER_ADDR and MASTER_PORT.
        timeout: how long a rank waits for another, in this call and in every collective.
    """
    complete_environment()
    # On a CPU a converging model's gradients become denormal numbers, and products with them take twice as long.
    torch.set_flush_denormal(True)
    device = _own_device()
    if not dist.is_initialized():
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        if store is None:
            store = _meet(rank, world_size, timeout)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=world_size, timeout=timeout,
            device_id=device if device.type == "cuda" and world_size > 1 else None,
        )  # fmt: skip
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def _meet(rank: int, world_size: int, timeout: timedelta) -> dist.Store:
    if world_size == 1:
        return dist.HashStore()  # in memory: no port to find
    store, *_ = next(dist.rendezvous("env://", rank, world_size, timeout=timeout))
    # Of an earlier group of the same processes the store may live still, and say where its ranks listened.
    return dist.PrefixStore(f"group{next(_num_groups)}", store)


def _own_device() -> torch.device:
    if not torch.cuda.is_available():
        keep_freed_memory()
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def before_stop(leave: Callable[[], None]) -> None:
    """Has something called, once, when this process leaves the present group."""
    _at_stop.append(leave)


def stop() -> None:
    """Leaves the process group. Collective."""
    _cpu_group.cache_clear()
    while _at_stop:
        _at_stop.pop()()
    if dist.is_initialized():
        dist.destroy_process_group()


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
