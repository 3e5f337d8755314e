"""A VQGAN -> programs that run with torch alone: `magvit export-program model=runs/x/vqgan_3d/export output=DIR`.

tokenize.pt2 takes clips 'b 3 t h w' float32 in [0, 1] to ids 'b t h w' int64, detokenize.pt2 takes ids to clips; any b,
on a CPU. Both are loaded again and compared with the model; program.json says how they compare.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from magvit_scale.config import ExportProgramConfig, Refusal, parse
from magvit_scale.files import sha256, write_json, written_aside
from magvit_scale.pretrained import hash_model
from magvit_scale.run_record import read_clip_facts, read_run_record
from magvit_scale.tokenizing import excess_distances
from magvit_scale.vqgan.autoencoder import VQGAN

Program = Callable[[Tensor], Tensor]
Shape = tuple[int, int, int]
"""(t, h, w)."""

TOKENIZE, DETOKENIZE = "tokenize.pt2", "detokenize.pt2"
TIE = 1e-5
"""An id may differ where its code is as near as the nearest but for this share of the squared lengths: 80 roundings of
float32."""
CLIP_TOLERANCE = 1e-5
"""Largest difference of a clip in [0, 1]; a step of 8 bits is 4e-3."""
EXAMPLE_BATCH, BATCHES = 2, (1, 3)


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


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Exports and compares; see the module's text."""
    config = parse(ExportProgramConfig, argv)
    model, output = VQGAN.from_pretrained(config.model).requires_grad_(False), Path(config.output)
    shape = _clip_shape(config)
    clips = torch.zeros(EXAMPLE_BATCH, 3, *shape)
    save_program(Tokenize(model), clips, output / TOKENIZE)
    save_program(Detokenize(model), model.tokenize(clips), output / DETOKENIZE)
    tokenize, detokenize = (torch.export.load(output / name).module() for name in (TOKENIZE, DETOKENIZE))
    found = compare(model, tokenize, detokenize, shape)
    write_json(output / "program.json", _about(config, shape, found))
    print(f"{output}: {_words(found)}")  # noqa: T201
    if not found.are_equal:
        raise Refusal(f"{output}: the programs are not the model ({_words(found)}); do not use them")


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
    tokens = different = near_ties = 0
    largest = 0.0
    for clips in _clips(shape):
        ids, expected = tokenize(clips), model.tokenize(clips)
        where = ids != expected
        tokens, different = tokens + ids.numel(), different + int(where.sum())
        near_ties += int((excess_distances(model, model.encode(clips), ids, where) < TIE).sum())
        any_ids = torch.randint(
            model.config.codebook_size, ids.shape, generator=torch.Generator().manual_seed(len(ids))
        )
        for some in (expected, any_ids):
            largest = max(largest, float((detokenize(some) - model.detokenize(some)).abs().max()))
    return Differences(
        batches=BATCHES, tokens=tokens, different=different, near_ties=near_ties, largest_clip_difference=largest
    )


def _clips(shape: Shape) -> Iterator[Tensor]:
    for size in BATCHES:
        yield torch.rand(size, 3, *shape, generator=torch.Generator().manual_seed(size))
        yield torch.linspace(0, 1, size)[:, None, None, None, None].expand(size, 3, *shape).contiguous()


def _clip_shape(config: ExportProgramConfig) -> Shape:
    known = read_clip_facts(config.model, read_run_record(config.model))
    frames, size = config.num_frames or known.num_frames, config.size_px or known.size_px
    if frames is None or size is None:
        raise Refusal(f"{config.model}: nothing beside it says what clips it is for; give num_frames= and size_px=")
    return frames, size, size


def _about(config: ExportProgramConfig, shape: Shape, found: Differences) -> dict[str, Any]:
    output = Path(config.output)
    return {
        "model_sha256": hash_model(config.model),
        "torch": torch.__version__,
        "clip": {"layout": "b c t h w", "shape": ["b", 3, *shape], "dtype": "float32", "value_range": [0, 1]},
        "programs": {name: {"sha256": sha256(output / name)} for name in (TOKENIZE, DETOKENIZE)},
        "tolerances": {"near_tie": TIE, "clip": CLIP_TOLERANCE},
        "differences": asdict(found),
        "are_equal": found.are_equal,
    }


def _words(found: Differences) -> str:
    return (
        f"{found.different} of {found.tokens} ids differ, {found.near_ties} of them near ties; clips by at most "
        f"{found.largest_clip_difference:.2g}, tolerance {CLIP_TOLERANCE:g}"
    )
