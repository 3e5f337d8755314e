"""A DeepSpeed engine's training state as named slices: master weights and AdamW moments, independent of ZeRO stage
and world size.

DeepSpeed's own checkpoints are neither atomic nor elastic. Here every rank names the slices of each parameter that it
owns and reads back whatever slices it owns then (spec: elastic checkpoints, section 3). DeepSpeed's internals that
this needs are touched in this file alone: `_hp_mapping`, `single_partition_of_fp32_groups`, `update_lp_params`.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")
Read = Callable[[str, int, int], Tensor]
"""(tensor name, first element, number of elements) -> flat float32 tensor."""


def owned_slices(engine: Any, rank: int, world_size: int) -> Iterator[tuple[str, int, Tensor]]:
    """Yields (`kind/parameter`, first element, flat view) of what this rank must write; together the ranks cover all
    once.
    """
    for index, (name, parameter) in enumerate(engine.module.named_parameters()):
        if _is_partitioned(engine) or index % world_size == rank:
            for start, views in _local_views(engine, parameter):
                yield from ((f"{kind}/{name}", start, view) for kind, view in views.items())


def num_updates(engine: Any) -> int:
    """Optimiser steps this engine has made: fewer than the run's for a discriminator that started late."""
    return int(engine.global_steps)


def restore(engine: Any, updates: int, read: Read) -> None:
    """Fills this rank's slices and refreshes the model's weights from them. No collective.

    Args:
        engine: freshly built.
        updates: its `num_updates` when it was saved; without any there are no moments yet.
        read: gives any slice of any tensor that `owned_slices` named.
    """
    inner = _inner_optimizer(engine)
    for flat in (p for group in inner.param_groups for p in group["params"] if updates):
        moments = {"exp_avg": torch.zeros_like(flat), "exp_avg_sq": torch.zeros_like(flat)}
        inner.state[flat] = {"step": torch.tensor(float(updates)), **moments}
    with torch.no_grad():
        for name, parameter in engine.module.named_parameters():
            for start, views in _local_views(engine, parameter):
                for kind, view in views.items():
                    view.copy_(read(f"{kind}/{name}", start, view.numel()))
        if _is_partitioned(engine):
            engine.optimizer.update_lp_params()
    engine.global_steps = updates


def _is_partitioned(engine: Any) -> bool:
    return engine.zero_optimization_stage() > 0


def _inner_optimizer(engine: Any) -> torch.optim.Optimizer:
    return engine.optimizer.optimizer if _is_partitioned(engine) else engine.optimizer


def _local_views(engine: Any, parameter: Any) -> list[tuple[int, dict[str, Tensor]]]:
    """Writable flat views of what this rank holds of one parameter, by kind, with their first element's index."""
    if not _is_partitioned(engine):
        flat, start, offset, length = parameter, 0, 0, parameter.numel()
    elif (mapping := parameter._hp_mapping) is None:
        return []
    else:
        flat = engine.optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
        start, length = mapping.lp_fragment_address.start, mapping.hp_fragment_address.numel
        offset = mapping.hp_fragment_address.start
    state = _inner_optimizer(engine).state.get(flat, {})
    whole = {"master": flat.data, **{kind: state[kind] for kind in MOMENTS if kind in state}}
    return [(start, {kind: tensor.view(-1).narrow(0, offset, length) for kind, tensor in whole.items()})]
