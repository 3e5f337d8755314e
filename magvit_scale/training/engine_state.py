"""A DeepSpeed engine's training state as named slices: master weights and AdamW moments, independent of ZeRO stage
and world size.

DeepSpeed's own checkpoints are neither atomic nor elastic. Here every rank names the slices of each parameter that it
owns and reads back whatever slices it owns then (spec: elastic checkpoints, section 3). Of DeepSpeed's internals this
file alone knows: `_hp_mapping`, `single_partition_of_fp32_groups`, `update_lp_params` (stages 1 and 2);
`grad_position`, `get_param_id`, `fp32_partitioned_groups_flat`, `fp16_partitioned_groups_flat`,
`_partition_all_parameters`, `_unflatten_partitioned_parameters`, `persistent_parameters` (stage 3).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from magvit_scale.training.slices import Read

MASTER, MOMENTS = "master", ("exp_avg", "exp_avg_sq")


def owned_slices(engine: Any, rank: int, world_size: int) -> Iterator[tuple[str, int, Tensor]]:
    """Yields (`kind/parameter`, first element, flat view) of what this rank must write; together the ranks cover all
    once.
    """
    for index, (name, parameter) in enumerate(engine.module.named_parameters()):
        # Stage 0 holds everything everywhere: there the parameters are dealt out.
        if engine.zero_optimization_stage() or index % world_size == rank:
            for start, views in local_views(engine, parameter, rank):
                yield from ((f"{kind}/{name}", start, view) for kind, view in views.items())


def num_updates(engine: Any) -> int:
    """Optimiser steps this engine has made: fewer than the run's for a discriminator that started late."""
    return int(engine.global_steps - engine.skipped_steps)


def restore(engine: Any, rank: int, updates: int, read: Read) -> None:
    """Fills this rank's slices and refreshes the model's weights from them. Collective.

    Args:
        engine: freshly built, or one that is set back.
        rank: this process's.
        updates: its `num_updates` when it was saved; without any there are no moments yet.
        read: gives any slice of any tensor that `owned_slices` named.
    """
    inner = _inner_optimizer(engine)
    inner.state.clear()
    for flat in _flat_parameters(engine) if updates else []:
        moments = {kind: torch.zeros_like(flat) for kind in MOMENTS}
        inner.state[flat] = {"step": torch.tensor(float(updates)), **moments}
    with torch.no_grad():
        for name, parameter in engine.module.named_parameters():
            for start, views in local_views(engine, parameter, rank):
                for kind, view in views.items():
                    view.copy_(read(f"{kind}/{name}", start, view.numel()))
    refresh_weights(engine)
    engine.global_steps, engine.skipped_steps = updates, 0


def overwrite_rows(engine: Any, rank: int, name: str, rows: Tensor, values: Tensor) -> None:
    """Gives rows of one weight matrix new values and no history: their moments become 0. Collective.

    Args:
        engine: DeepSpeed's.
        rank: this process's.
        name: of the parameter, 'n d'.
        rows: 'r' int64; the same on every rank.
        values: 'r d' float32; the same on every rank.
    """
    width = values.shape[1]
    elements = (rows[:, None] * width + torch.arange(width, device=rows.device)).flatten()
    for first, views in local_views(engine, dict(engine.module.named_parameters())[name], rank):
        own = (elements >= first) & (elements < first + views[MASTER].numel())
        places = (elements[own] - first).to(views[MASTER].device)
        for kind, view in views.items():
            view[places] = values.flatten()[own].to(view.device) if kind == MASTER else 0.0
    refresh_weights(engine)


def discard_gradients(engine: Any) -> None:
    """Forgets what an interrupted step has added up, so that the next one begins anew. Every rank; none waits."""
    for parameter in engine.module.parameters():
        parameter.grad = None
    engine.micro_steps -= engine.micro_steps % engine.gradient_accumulation_steps()
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if stage == 3:
        # Where it counts from 0, and copies the first micro-batch's gradients over what is there, were it NaN.
        optimizer.zero_grad()
    elif stage:
        optimizer.micro_step_id = -1
        optimizer.all_grad_tensors = {}
    if stage:
        optimizer.averaged_gradients = {}


def local_views(engine: Any, parameter: Any, rank: int) -> list[tuple[int, dict[str, Tensor]]]:
    """Writable flat views of what this rank holds of one parameter, by kind, with their first element's index."""
    flat, start, offset, length = _place(engine, parameter, rank)
    if length <= 0:
        return []
    state = _inner_optimizer(engine).state.get(flat, {})
    whole = {MASTER: flat.data, **{kind: state[kind] for kind in MOMENTS if kind in state}}
    return [(start, {kind: tensor.view(-1).narrow(0, offset, length) for kind, tensor in whole.items()})]


def _place(engine: Any, parameter: Any, rank: int) -> tuple[Any, int, int, int]:
    """The flat tensor that holds this rank's part of a parameter, where the part starts in the parameter and in the
    flat tensor, and how long it is.
    """
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if stage == 0:
        return parameter, 0, 0, parameter.numel()
    if stage == 3:
        group, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = rank * length  # every rank has as many; the last ones are padded
        return optimizer.fp32_partitioned_groups_flat[group], start, offset, min(length, parameter.ds_numel - start)
    if (mapping := parameter._hp_mapping) is None:
        return None, 0, 0, 0
    flat = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
    hp = mapping.hp_fragment_address
    return flat, mapping.lp_fragment_address.start, hp.start, hp.numel


def _flat_parameters(engine: Any) -> list[Tensor]:
    """What the inner optimiser steps on."""
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if stage == 0:
        return [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return list(optimizer.fp32_partitioned_groups_flat if stage == 3 else optimizer.single_partition_of_fp32_groups)


def _inner_optimizer(engine: Any) -> torch.optim.Optimizer:
    return engine.optimizer.optimizer if engine.zero_optimization_stage() else engine.optimizer


def refresh_weights(engine: Any) -> None:
    """Copies written master weights into the model. Collective."""
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if stage in (1, 2):
        optimizer.update_lp_params()
    elif stage == 3:
        optimizer._partition_all_parameters()
        for group, flat in enumerate(optimizer.fp32_partitioned_groups_flat):
            optimizer.fp16_partitioned_groups_flat[group].data.copy_(flat.data)
            optimizer._unflatten_partitioned_parameters(group)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
