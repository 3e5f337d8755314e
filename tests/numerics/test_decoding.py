"""`decode` given the official noise takes every official decision, for every stored trace."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from magvit_scale.commit.condition import Condition, build_condition
from magvit_scale.commit.decoding import Logits, Noise, decode, guided, smallest_of_top_p
from magvit_scale.config import DecodingConfig, TransformerConfig
from tests.numerics.official_names import CONDITIONINGS, TASK_IDS, flat

Arrays = Mapping[str, np.ndarray]
REQUIRED = {
    "decode_frame_prediction_cond2cond_det",
    "decode_frame_prediction_det",
    "decode_frame_prediction_noise",
    "decode_full_generation_det",
    "decode_full_generation_guidance_noise",
    "decode_full_generation_topp_noise",
}
FOUND = {path.stem for path in Path(os.environ.get("MAGVIT_GOLDEN_DIR", "nowhere")).glob("decode_*.npz")}
EXACT = "token ids and masks are integers"


def decoding_config(about: Mapping[str, Any]) -> DecodingConfig:
    return DecodingConfig(
        num_steps=about["num_iter"],
        choice_temperature=about["mask_temperature"],
        sampling_temperature=about["sampling_temperature"],
        top_k=about["sampling_topk"],
        top_p=about["sampling_topp"],
        schedule=about["schedule"],
        guidance_scale=about["guidance_scale"],
    )


def condition_of_trace(trace: Arrays, about: Mapping[str, Any]) -> Condition:
    model = TransformerConfig(conditioning=CONDITIONINGS[about["condition_mode"]])  # type: ignore[arg-type]
    shape = tuple(about["latent_shape"])
    tokens = flat(trace.get("cond_inputs", trace["state0/masked_tokens"]))
    return build_condition([TASK_IDS[about["task_id"]]] * len(tokens), tokens, shape, model)  # type: ignore[arg-type]


def toy(trace: Arrays, about: Mapping[str, Any], prefix: str, condition: Condition) -> Logits:
    """The README's stand-in for the transformer."""
    embedding, mix, position, head = (torch.from_numpy(trace[f"toy/{name}"]) for name in ("E", "U", "pos", "V"))
    ahead = torch.from_numpy(trace[f"prefix/{prefix}"]).long()

    def logits(latents: Tensor, unknown: Tensor) -> Tensor:
        is_condition = condition.where & unknown  # the official segment 1
        segments = torch.cat([torch.zeros_like(ahead, dtype=torch.bool), is_condition], dim=1).float()
        e = embedding[torch.cat([ahead, latents], dim=1) % int(trace["toy/m"])]
        h = torch.tanh(e @ mix + position + 0.3 * e.mean(1, keepdim=True) + 0.5 * segments[..., None])
        return float(trace["toy/scale"]) * (h @ head)[:, ahead.shape[1] :, : about["codebook_size"]]

    return logits


def stored_noise(trace: Arrays, num_steps: int) -> Noise:
    def draws() -> Iterator[Tensor | None]:
        for step in range(num_steps):
            for kind in ("sample_gumbel", "score_gumbel"):
                stored = trace.get(f"step{step}/{kind}")
                yield None if stored is None else flat(stored)

    remaining = draws()

    def draw(shape: torch.Size) -> Tensor:
        noise = next(remaining)
        return torch.ones(shape) if noise is None else (-noise).exp().reshape(shape)

    return draw


@pytest.mark.parametrize("name", sorted(REQUIRED | FOUND))
def test_every_decision_of_a_trace_is_the_official_one(
    golden: Callable[[str], Arrays], golden_json: Callable[[str], Any], agree: Callable[..., None], name: str
) -> None:
    trace, about = golden(f"{name}.npz"), golden_json("decode.json")[name]
    condition, config = condition_of_trace(trace, about), decoding_config(about)
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    hidden: list[Tensor] = []
    told, untold = (toy(trace, about, key, condition) for key in ("masked_inputs", "uncond_masked_inputs"))

    def free(latents: Tensor, unknown: Tensor) -> Tensor:
        hidden.append(latents)
        return untold(latents, unknown)

    answer = guided(told, free, condition.where, config.guidance_scale)

    def logits(latents: Tensor, unknown: Tensor) -> Tensor:
        seen.append((latents, unknown, answer(latents, unknown)))
        return seen[-1][2]

    noise = stored_noise(trace, config.num_steps)
    decoded = decode(logits, condition.start, ~condition.is_fixed, config, noise)
    if "cond_mask" in trace:
        agree("decoding", "condition", condition.where, flat(trace["cond_mask"]), tolerance=0, reason=EXACT, case=name)
    for step, (latents, unknown, found) in enumerate(seen):
        for what, ours, official in (
            ("shown tokens", latents, f"state{step}/masked_tokens"),
            ("unknown", unknown, f"state{step}/unknown_mask"),
            ("sampled tokens", decoded.tokens_by_step[step], f"state{step + 1}/full_tokens"),
        ):
            expected = flat(trace[official].reshape(trace["state0/masked_tokens"].shape))
            agree("decoding", f"{what}, every step", ours, expected, tolerance=0, reason=EXACT, case=f"{name}, {step}")
        reason, expected = "float32 matrix products in another order", flat(trace[f"step{step}/logits"])
        close = {"tolerance": 2e-5, "relative": True, "reason": reason}
        agree("decoding", "logits of the toy model", found, expected, **close, case=f"{name}, {step}")
    for step, latents in enumerate(hidden):
        expected = flat(trace[f"state{step}/uncond_masked_tokens"])
        agree("decoding", "tokens shown to the unguided branch, every step", latents, expected,
              tolerance=0, reason=EXACT, case=f"{name}, {step}")  # fmt: skip
    assert len(hidden) == (config.num_steps if config.guidance_scale else 0)
    agree("decoding", "result", decoded.tokens, flat(trace["final_tokens"]), tolerance=0, reason=EXACT, case=name)
    assert [len(unknown[0].nonzero()) for _, unknown, _ in seen] == about["num_unknown_per_state_sample0"][:-1]


def test_top_p_keeps_the_official_codes(golden: Callable[[str], Arrays], agree: Callable[..., None]) -> None:
    official = golden("mask_utils_misc.npz")
    logits = torch.from_numpy(official["topp/logits"])
    for key in (key for key in official if key.startswith("topp/p")):
        share = float(key.removeprefix("topp/p"))
        kept = logits >= smallest_of_top_p(logits, share)
        agree("decoding", "codes kept by top-p", kept, official[key] > -1e6, tolerance=0, reason=EXACT, case=str(share))
