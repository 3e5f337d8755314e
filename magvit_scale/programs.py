"""A VQGAN as torch.export programs: how they are made, and how they compare with the model."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from magvit_scale.files import written_aside
from magvit_scale.tokenizing import excess_distances
from magvit_scale.vqgan.autoencoder import VQGAN

Program = Callable[[Tensor], Tensor]
Shape = tuple[int, int, int]
"""(t, h, w)."""

TIE = 1e-5
"""An id may differ where its code is as near as the nearest but for this share of the squared lengths: 80 roundings of
float32."""
CLIP_TOLERANCE = 1e-5
"""Largest difference of a clip in [0, 1]; a step of 8 bits is 4e-3."""
BATCHES = (1, 3)


@dataclass(frozen=True, kw_only=True)
class Differences:
    """What programs and model give for the same clips and ids."""

    batches: tuple[int, ...]
    tokens: int
    different: int
    near_ties: int
    """Of the different ones."""
    largest_clip_difference: float

    @property
    def are_equal(self) -> bool:
        """But for what rounding does."""
        return self.different == self.near_ties and self.largest_clip_difference <= CLIP_TOLERANCE


class Tokenize(nn.Module):
    """`VQGAN.tokenize` without the decoder's weights."""

    def __init__(self, model: VQGAN):
        super().__init__()
        self.model = copy.deepcopy(model)
        self.model.decoder = nn.Identity()  # type: ignore[assignment]

    def forward(self, clips: Tensor) -> Tensor:
        """'b 3 t h w' in [0, 1] -> 'b t h w' int64."""
        return self.model.tokenize(clips)


class Detokenize(nn.Module):
    """`VQGAN.detokenize` without the encoder's weights."""

    def __init__(self, model: VQGAN):
        super().__init__()
        self.model = copy.deepcopy(model)
        self.model.encoder = nn.Identity()  # type: ignore[assignment]

    def forward(self, ids: Tensor) -> Tensor:
        """'b t h w' int64 -> 'b 3 t h w' in [0, 1]."""
        return self.model.detokenize(ids)


def save_program(module: nn.Module, example: Tensor, path: Path) -> None:
    """Exports a module of one tensor, whose first axis may have any length, and writes it aside, then renames it."""
    program = torch.export.export(module.eval(), (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    # Neither this machine's paths nor the example travel; and without the example a program holds no pickle.
    for graph in program.graph_module.modules():
        for node in graph.graph.nodes if isinstance(graph, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    program.example_inputs = None
    with written_aside(path) as file:
        torch.export.save(program, file)


def compare(model: VQGAN, tokenize: Program, detokenize: Program, shape: Shape) -> Differences:
    """Holds programs against their model: random and constant clips of (t, h, w), their ids and random ids."""
    codes = model.config.codebook_size
    tokens = different = near_ties = 0
    distances: list[Tensor] = []
    for clips in _clips(shape):
        ids, expected = tokenize(clips), model.tokenize(clips)
        where = ids != expected
        tokens, different = tokens + ids.numel(), different + int(where.sum())
        if where.any():
            near_ties += int((excess_distances(model, model.encode(clips), ids, where) < TIE).sum())
        any_ids = torch.randint(codes, ids.shape, generator=torch.Generator().manual_seed(len(ids)))
        distances += [(detokenize(some) - model.detokenize(some)).abs().max() for some in (expected, any_ids)]
    return Differences(
        batches=BATCHES,
        tokens=tokens,
        different=different,
        near_ties=near_ties,
        largest_clip_difference=float(torch.stack(distances).max()),  # torch's, as Python's loses a NaN
    )


def _clips(shape: Shape) -> Iterator[Tensor]:
    for size in BATCHES:
        yield torch.rand(size, 3, *shape, generator=torch.Generator().manual_seed(size))
        yield torch.linspace(0, 1, size)[:, None, None, None, None].expand(size, 3, *shape).contiguous()
