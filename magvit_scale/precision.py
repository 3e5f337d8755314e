"""In which numbers a network computes: autocast, and the float32 islands in it.

The networks keep float32 parameters and run under `torch.autocast`, which `compute_in` opens. What must not be
rounded to 16 bits says so where it is computed, and autocast cannot overrule it: inside autocast even a product of
float32 matrices is cast down.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from magvit_scale.config import Precision

AUTOCAST_DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
Layer = nn.Linear | nn.Conv2d | nn.Conv3d | nn.LayerNorm


def compute_in(model: nn.Module, precision: Precision, device: torch.device) -> nn.Module:
    """Makes a model's forward pass compute in a precision, on every rank; its weights stay float32.

    The context is opened inside of `forward`: DeepSpeed closes one that is opened around it.
    """
    if precision == "bf16" and device.type == "cpu":
        # Without bfloat16 instructions oneDNN's gradients of convolutions are noise (spec: DeepSpeed section 4).
        torch.backends.mkldnn.set_flags(_enabled=False)
    if precision in AUTOCAST_DTYPES:
        # Its cache would hold a 16-bit copy of all weights until the pass ends.
        context = torch.autocast(device.type, dtype=AUTOCAST_DTYPES[precision], cache_enabled=False)
        model.forward = context(model.forward)
    return model


def without_autocast(x: Tensor) -> AbstractContextManager:
    """A context in which operations on the device of `x` compute in the dtypes that they are given."""
    device = x.device.type
    # `meta` has no autocast to leave. Asked whether a device has one, torch 2.11's compiler would cut the graph here.
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


def in_own_precision(layer: Layer, x: Tensor) -> Tensor:
    """Applies a layer in its weight's dtype, float32 in training, whatever autocast says."""
    with without_autocast(x):
        return layer(x.to(layer.weight.dtype))


@contextmanager
def full_float32(x: Tensor) -> Iterator[None]:
    """A context in which convolutions and products of float32 on the device of `x` stay float32: no autocast, and no
    TF32, which cuDNN takes unasked. For networks whose outputs are measurements.
    """
    operations = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]  # as in peak.py
    former = [operation.fp32_precision for operation in operations]
    try:
        for operation in operations:
            operation.fp32_precision = "ieee"
        with without_autocast(x):
            yield
    finally:
        for operation, precision in zip(operations, former, strict=True):
            operation.fp32_precision = precision
