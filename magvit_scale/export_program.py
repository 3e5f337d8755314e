"""A VQGAN -> programs that run with torch alone: `magvit export-program model=runs/x/vqgan_3d/export output=DIR`.

tokenize.pt2 takes clips 'b 3 t h w' float32 in [0, 1] to ids 'b t h w' int64, detokenize.pt2 takes ids to clips; any b,
on a CPU. Both are loaded again and compared with the model; program.json says how they compare.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from magvit_scale.config import ExportProgramConfig, Refusal, parse
from magvit_scale.files import sha256, write_json
from magvit_scale.pretrained import hash_model
from magvit_scale.programs import (
    CLIP_TOLERANCE,
    TIE,
    Detokenize,
    Differences,
    Shape,
    Tokenize,
    compare,
    save_program,
)
from magvit_scale.run_record import read_clip_facts, read_run_record
from magvit_scale.vqgan.autoencoder import VQGAN

TOKENIZE, DETOKENIZE = "tokenize.pt2", "detokenize.pt2"
EXAMPLE_BATCH = 2


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
