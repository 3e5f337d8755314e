"""Mask schedules, masking given the scores, and whole input sequences, against the official arrays."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from magvit_scale.commit.condition import build_condition, build_prompt
from magvit_scale.commit.decoding import guided
from magvit_scale.commit.losses import token_weights
from magvit_scale.commit.masking import Assignment, assign, count_masked, mask_ratio, mask_share
from magvit_scale.commit.tasks import MASK_TOKEN
from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import CommitLossConfig, Task, TransformerConfig
from tests.numerics.official_names import CONDITIONINGS, TASK_NAMES, flat

Golden = Callable[[str], Mapping[str, np.ndarray]]
Agree = Callable[..., None]
EXACT = "token ids, masks and 0/1 weights"

# Official case -> our task; how it is conditioned is read from tasks.json.
CASES: dict[str, Task] = {name: task for task, name in TASK_NAMES.items()} | {
    "x_frame_prediction_bair_fp1": "FP",
    "x_frame_prediction_cond2cond": "FP",
    "x_frame_prediction_input2input": "FP",
    "x_frame_prediction_prefix": "FP",
    "x_latent_frame_prediction": "FP",
    "x_outpainting_h_weight_mask_refine": "OPH",
}


def test_schedules_are_the_official_ones(golden: Golden, agree: Agree) -> None:
    official = golden("mask_schedule.npz")
    progress = torch.from_numpy(official["ratio"])
    cases = [key.split("/total") for key in official if "/total" in key]
    assert {"cosine", "uniform", "exp", "log", "pow2.5", "poly:-1.0,1.0"} <= {schedule for schedule, _ in cases}
    for schedule, total in cases:
        found = mask_ratio(progress, schedule, int(total))
        agree("schedules", f"{schedule.split(':')[0]}, share masked", found, official[f"{schedule}/total{total}"],
              tolerance=1e-6, reason="float32 powers and logarithms", case=f"{schedule}, {total} tokens")  # fmt: skip


def test_decoding_counts_are_the_official_ones(golden: Golden, agree: Agree) -> None:
    official = golden("mask_schedule.npz")
    for key in (key for key in official if key.endswith("num_masked_of_1024")):
        steps, schedule, _ = key.split("/")
        num_steps = int(steps.removeprefix("decode_steps"))
        ratio = torch.cat([mask_ratio(torch.tensor([(i + 1) / num_steps]), schedule, 1024) for i in range(num_steps)])
        found = count_masked(ratio, 1024, "floor")
        agree("schedules", f"{schedule}, tokens masked per decoding step", found, official[key],
              tolerance=0, reason="counts", case=f"{num_steps} steps")  # fmt: skip


class Case:
    """One official case: our configuration of it, and its arrays."""

    def __init__(self, golden: Golden, golden_json: Callable[[str], Any], name: str) -> None:
        about, self.arrays = golden_json("tasks.json"), golden("task_tokens.npz")
        self.name, self.task, self.about = name, CASES[name], about[name]
        self.tokens, shown, self.labels = flat(self["inputs"]), flat(self["cond_inputs"]), torch.tensor(self["label"])
        no_class = int(self["frame_prediction/generate_prefix_only/masked_inputs"][0, -1])
        conditioning = CONDITIONINGS[self.about["mask_fn_kwargs"].get("condition_mode")]
        # The official way of latent masking: cond->cond, with the true clip for its canvas.
        is_latent = name == "x_latent_frame_prediction"
        self.model = TransformerConfig(
            latent_shape=self["inputs"].shape[1:],  # type: ignore[arg-type]
            codebook_size=no_class - about["frame_prediction"]["num_classes"],
            num_classes=self.about["num_classes"],
            multi_task=self.about["multi_task"],
            inpainting_token="outpainting",
            conditioning="latent" if is_latent else conditioning,  # type: ignore[arg-type]
        )
        weight_mode = self.about["mask_fn_kwargs"]["weight_mode"]
        self.loss = CommitLossConfig(reconstruct_weight=0.0 if weight_mode == "mask+refine" else 1.0)
        condition_tokens = self.tokens if conditioning == "latent" else shown
        tasks = [self.task] * len(shown)
        self.condition = build_condition(tasks, condition_tokens, self["inputs"].shape[1:], self.model)  # type: ignore[arg-type]

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def assign(self, scores: Tensor, ratio: float) -> Assignment:
        is_masked = mask_share(scores, torch.full((len(scores),), ratio), ~self.condition.is_fixed, "floor")
        return assign(self.tokens, self.condition, is_masked)

    def unconditional(self, parts: Assignment) -> Tensor:
        """What guidance shows to the branch without a condition."""
        seen: list[Tensor] = []

        def free(latents: Tensor, unknown: Tensor) -> Tensor:
            seen.append(latents)
            return latents

        guided(free, free, self.condition.where, 1.0)(parts.inputs, parts.refine | parts.mask)
        return seen[-1]

    def sequence(self, latents: Tensor) -> Tensor:
        most = max(self.condition.before.shape[1] - 1, 0)
        tiny = {"num_layers": 1, "hidden_size": 2, "mlp_dim": 2, "num_heads": 1, "num_condition_tokens": most}
        with torch.device("meta"):
            transformer = CommitTransformer(replace(self.model, **tiny))  # type: ignore[arg-type]
        labels = self.labels[:, 0] if self.about["config"].get("class_conditional") else torch.full((len(latents),), -1)
        # input->input was stored with frame prediction's token; latent masking by its own name has generation's.
        told = replace(self.model, conditioning="commit") if self.name.endswith("input2input") else self.model
        prompt = build_prompt([self.task] * len(latents), labels, told)
        return transformer.build_sequence(*prompt, latents, self.condition.before)


@pytest.mark.parametrize("name", CASES)
def test_masking_given_the_scores_is_the_official_one(
    golden: Golden, golden_json: Callable[[str], Any], agree: Agree, name: str
) -> None:
    case = Case(golden, golden_json, name)
    for index, ratio in enumerate(case["mask_ratios"]):
        official = f"{name}/mask_fn/ratio{index}"
        parts = case.assign(flat(case["mask_score"]), float(ratio))
        weights = flat(case[f"{official}/weights"])
        for what, found, expected in (
            ("inputs", parts.inputs, flat(case[f"{official}/masked_inputs"])),
            ("unconditional inputs", case.unconditional(parts), flat(case[f"{official}/uncond_masked_inputs"])),
            ("weights", token_weights(parts, case.loss), weights),
            ("targets", case.tokens[weights > 0], flat(case[f"{official}/targets"])[weights > 0]),
        ):
            agree(
                "masking",
                f"{what} given the scores",
                found,
                expected,
                tolerance=0,
                reason=EXACT,
                case=f"{name}, share {ratio:.2f}",
            )


@pytest.mark.parametrize("name", CASES)
def test_sequences_are_the_official_ones(
    golden: Golden, golden_json: Callable[[str], Any], agree: Agree, name: str
) -> None:
    case = Case(golden, golden_json, name)
    parts = case.assign(flat(case["generate/mask_score"]), float(case["generate/mask_ratio"][0]))
    sequence = case.sequence(parts.inputs)
    size = sequence.shape[1] - parts.inputs.shape[1]
    weights = torch.cat([torch.zeros(len(sequence), size), token_weights(parts, case.loss)], dim=1)
    where = weights > 0
    for what, found, expected in (
        ("sequence", sequence, case[f"{name}/generate/masked_inputs"]),
        ("sequence's weights", weights, case[f"{name}/generate/weights"]),
        ("sequence's targets", case.sequence(case.tokens)[where], case[f"{name}/generate/targets"][where.numpy()]),
        ("ahead of the latents", sequence[:, :size], case[f"{name}/generate_prefix_only/masked_inputs"]),
    ):
        agree("masking", f"whole sequence: {what}", found, expected, tolerance=0, reason=EXACT, case=name)


def test_plain_masks_are_the_official_ones(golden: Golden, agree: Agree) -> None:
    official = golden("mask_utils_misc.npz")
    tokens, scores = flat(official["inputs"]), flat(official["mask_score"])
    prefix, suffix = "random_mask/ratio", "/masked_inputs"
    names = [key for key in official if key.startswith(prefix) and key.endswith(suffix) and "limits" not in key]
    assert names
    for name in names:
        share = float(name.removeprefix(prefix).removesuffix(suffix))
        ratio, everywhere = torch.full((len(tokens),), share), torch.ones_like(scores, dtype=torch.bool)
        found = tokens.masked_fill(mask_share(scores, ratio, everywhere, "floor"), MASK_TOKEN)
        agree(
            "masking",
            "plain mask given the scores",
            found,
            flat(official[name]),
            tolerance=0,
            reason=EXACT,
            case=f"share {share}",
        )
