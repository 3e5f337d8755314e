"""Other people's tokenizers in the same process, where they are installed: of other designs, so that operations per
second compare and seconds do not.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor

from benchmarks.speed.figures import Built, Workload, count_parameters, words
from benchmarks.speed.official import what_is_missing
from benchmarks.speed.plan import Setting
from benchmarks.speed.timing import inferring

LUCIDRAINS_LAYERS = (
    "residual", "compress_space", ("consecutive_residual", 2), "compress_space", ("consecutive_residual", 2),
    "linear_attend_space", "compress_space", ("consecutive_residual", 2), "attend_space", "compress_time",
    ("consecutive_residual", 2), "compress_time", ("consecutive_residual", 2), "attend_time",
)  # fmt: skip
"""Of its README, which has a codebook of MAGVIT's size and the same factors from clip to tokens."""


@dataclass(frozen=True)
class Tokenizer:
    """One of another design."""

    model: torch.nn.Module
    tokenize: Callable[[Tensor], Tensor]
    detokenize: Callable[[Tensor], Tensor]


def build_vidtok() -> Tokenizer:
    """VidTok, 4 x 8 x 8, finite scalar quantisation with 262,144 codes, not causal."""
    from diffusers import AutoencoderVidTok

    model = AutoencoderVidTok(
        regularizer="fsq", z_channels=6, double_z=False, is_causal=False, codebook_size=262144
    )  # fmt: skip
    return Tokenizer(model, lambda clip: model.encode(clip)[1], lambda ids: model.decode(ids, decode_from_indices=True))


def build_lucidrains() -> Tokenizer:
    """The README's tokenizer without its losses' networks."""
    from magvit2_pytorch import VideoTokenizer

    model = VideoTokenizer(
        image_size=128, init_dim=64, max_dim=512, codebook_size=1024, layers=LUCIDRAINS_LAYERS, use_gan=False,
        perceptual_loss_weight=0.0, flash_attn=False,
    )  # fmt: skip
    whole = {"video_contains_first_frame": False}  # otherwise it takes 17 frames
    return Tokenizer(
        model, partial(model, return_codes=True, **whole), partial(model.decode_from_code_indices, **whole)
    )  # fmt: skip


PEERS: Mapping[str, tuple[str, Callable[[], Tokenizer]]] = {
    "VidTok of diffusers": ("diffusers", build_vidtok),
    "magvit2-pytorch": ("magvit2_pytorch", build_lucidrains),
}
"""By name: the package, and how a tokenizer is made of it."""


def peers(setting: Setting) -> list[Workload]:
    """Tokenizing and detokenizing by those that are installed, on our clips."""
    plan = setting.plan
    return [
        Workload(f"{name}, {verb}", setting.arithmetic, plan.clips, words(plan.clip),
                 partial(_build, build, verb, setting), plan.clip[0] * plan.clips)
        for name, (package, build) in PEERS.items()
        if find_spec(package)
        for verb in ("tokenize", "detokenize")
    ]  # fmt: skip


def not_installed() -> dict[str, str]:
    """Why a peer has no rows."""
    found = {name: f"{package} is not installed" for name, (package, _) in PEERS.items() if not find_spec(package)}
    official = what_is_missing()
    return found | {"official JAX code": official} if official else found


def _build(build: Callable[[], Tokenizer], verb: str, setting: Setting) -> Built:
    tokenizer = build()
    tokenizer.model.to(setting.device).eval()
    clip = torch.rand(setting.plan.clips, 3, *setting.plan.clip, device=setting.device)
    work = inferring(lambda: tokenizer.tokenize(clip), setting)
    if verb == "detokenize":
        ids = work()
        work = inferring(lambda: tokenizer.detokenize(ids), setting)
    return Built({"plain": work}, count_parameters([tokenizer.model]))
