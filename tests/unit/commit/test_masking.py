"""Mask schedules and COMMIT's assignment against the specification's numbers and the official arrays."""

import numpy as np
import pytest
import torch
from torch import Tensor

from magvit_scale.commit.masking import Assignment, Schedule, assign, choose_masked, count_masked, mask_ratio
from magvit_scale.commit.tasks import MASK_TOKEN, condition_mask
from magvit_scale.config import TASKS, Task

SCHEDULES: tuple[Schedule, ...] = ("cosine", "uniform", "exp", "log")
STILL_MASKED: dict[Schedule, list[int]] = {
    "cosine": [1015, 989, 946, 886, 812, 724, 623, 511, 391, 265, 133],
    "exp": [1022, 1020, 1018, 1013, 1006, 992, 966, 922, 842, 701, 449],
    "uniform": [938, 853, 768, 682, 597, 512, 426, 341, 256, 170, 85],
}


@pytest.mark.parametrize("schedule", STILL_MASKED)
def test_tokens_still_masked_after_each_of_twelve_steps(schedule: Schedule) -> None:
    ratio = mask_ratio(torch.arange(1, 12) / 12, schedule, 1024)
    assert count_masked(ratio, 1024, "floor").tolist() == STILL_MASKED[schedule]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_tokens", [16, 1024])
def test_schedules_fall_from_one_to_the_smallest_ratio(schedule: Schedule, num_tokens: int) -> None:
    ratio = mask_ratio(torch.linspace(0, 1, 101), schedule, num_tokens)
    assert (ratio.diff() <= 0).all()
    # 1 - 1/N is where `exp` starts.
    assert ratio[0].item() == pytest.approx(1 - 1 / num_tokens if schedule == "exp" else 1.0)
    assert ratio[-1].item() == pytest.approx(1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_are_their_formulas(schedule: Schedule) -> None:
    r = np.linspace(0.02, 0.98, 25)
    expected = {
        "cosine": np.cos(np.pi * r / 2),
        "uniform": 1 - r,
        "exp": 1 - 512.0 ** -(1 - r),
        "log": np.clip(-np.log2(r) / 9, 1e-6, 1),
    }[schedule]
    found = mask_ratio(torch.from_numpy(r), schedule, 512).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_counts_round_as_asked_and_stay_within_one_and_all() -> None:
    ratio = torch.tensor([1e-6, 0.401, 0.5, 1.0])
    assert count_masked(ratio, 10, "floor").tolist() == [1, 4, 5, 10]
    assert count_masked(ratio, 10, "ceil").tolist() == [1, 5, 5, 10]


def test_the_lowest_scores_are_masked_exactly_as_many_as_asked() -> None:
    scores = torch.rand(5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    count = torch.tensor([1, 7, 16, 31, 32])
    masked = choose_masked(scores, count)
    assert masked.sum(1).tolist() == count.tolist()
    for row, is_masked in zip(scores, masked, strict=True):
        assert is_masked.all() or row[is_masked].max() < row[~is_masked].min()


def appendix_assignment() -> Assignment:
    """The worked example of spec appendix A, sample 0: latents 'n' = (2 4 4)."""
    k = torch.arange(32)
    tokens = 7 * k % 64
    scores = 0.5 + 0.5 * torch.sin(1.7 * k + 0.2)
    is_masked = choose_masked(scores[None], count_masked(torch.tensor([0.4]), 32, "floor"))
    return assign(tokens[None], ((tokens + 1) % 64)[None], condition_mask("FP", (2, 4, 4)).reshape(1, 32), is_masked)


def test_assignment_of_the_specifications_example() -> None:
    assignment = appendix_assignment()
    # fmt: off
    expected = [0, 7, 15, 22, 28, 35, 43, 50, 56, 63, 7, 13, 20, 27, 35, 41,
                48, -1, -1, 5, 12, -1, 26, 33, 40, -1, 54, 61, -1, -1, 18, 25]
    # fmt: on
    assert assignment.inputs.tolist() == [expected]
    assert (assignment.refine | assignment.mask).sum().item() == 12
    assert assignment.mask.nonzero()[:, 1].tolist() == [k for k, token in enumerate(expected) if token == -1]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("ratio", [1e-6, 0.25, 0.6, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_three_parts_are_disjoint_complete_and_shown_as_they_say(task: Task, ratio: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 50, (3, 64), generator=generator)
    canvas = tokens + 100
    condition = condition_mask(task, (4, 4, 4)).reshape(1, 64).expand(3, 64)
    count = count_masked(torch.full((3,), ratio), 64, "floor")
    is_masked = choose_masked(torch.rand(3, 64, generator=generator), count)
    parts = assign(tokens, canvas, condition, is_masked)
    assert ((parts.refine.int() + parts.mask.int() + parts.reconstruct.int()) == 1).all()
    assert ((parts.refine | parts.mask).sum(1) == max(1, int(64 * ratio))).all()
    assert not (parts.refine & ~condition).any()
    assert not (parts.mask & condition).any()
    assert torch.equal(parts.inputs[parts.refine], canvas[parts.refine])
    assert (parts.inputs[parts.mask] == MASK_TOKEN).all()
    assert torch.equal(parts.inputs[parts.reconstruct], tokens[parts.reconstruct])


def test_assigning_leaves_its_arguments_alone() -> None:
    tokens, canvas = torch.arange(8)[None], torch.arange(8, 16)[None]
    condition, is_masked = (torch.arange(8)[None] % 2).bool(), torch.ones(1, 8, dtype=torch.bool)
    assign(tokens, canvas, condition, is_masked)
    assert tokens.tolist() == [list(range(8))]
    assert canvas.tolist() == [list(range(8, 16))]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_tokens", [256, 1024])
def test_schedules_are_the_official_ones(golden, schedule: Schedule, num_tokens: int) -> None:
    official = golden("mask_schedule.npz")
    found = mask_ratio(torch.from_numpy(official["ratio"]), schedule, num_tokens).numpy()
    np.testing.assert_allclose(found, official[f"{schedule}/total{num_tokens}"], rtol=1e-5, atol=2e-7)


@pytest.mark.parametrize("schedule", ["cosine", "exp", "uniform"])
@pytest.mark.parametrize("num_steps", [6, 8, 12])
def test_decoding_counts_are_the_official_ones(golden, schedule: Schedule, num_steps: int) -> None:
    expected = golden("mask_schedule.npz")[f"decode_steps{num_steps}/{schedule}/num_masked_of_1024"]
    counts = [
        count_masked(mask_ratio(torch.tensor((step + 1) / num_steps), schedule, 1024), 1024, "floor").item()
        for step in range(num_steps)
    ]
    assert counts == expected.tolist()


OFFICIAL_NAMES: dict[Task, str] = {
    "FP": "frame_prediction",
    "FI": "frame_interpolation",
    "OPC": "outpainting_c",
    "OPV": "outpainting_v",
    "OPH": "outpainting_h",
    "OPD": "outpainting_dv",
    "IPC": "inpainting_c",
    "IPD": "inpainting_dv",
    "CG": "full_generation",
    "CFP": "x_frame_prediction_class",
}


@pytest.mark.parametrize("task", TASKS)
def test_assignments_are_the_official_ones(golden, task: Task) -> None:
    official = golden("task_tokens.npz")

    def flat(name: str) -> Tensor:
        return torch.from_numpy(official[name]).reshape(2, 1024)

    condition = condition_mask(task, (4, 16, 16)).reshape(1, 1024).expand(2, 1024)
    for index, ratio in enumerate(official["mask_ratios"]):
        count = count_masked(torch.full((2,), float(ratio)), 1024, "floor")
        parts = assign(
            flat("inputs").long(), flat("cond_inputs").long(), condition, choose_masked(flat("mask_score"), count)
        )
        prefix = f"{OFFICIAL_NAMES[task]}/mask_fn/ratio{index}"
        assert torch.equal(parts.inputs, flat(f"{prefix}/masked_inputs").long()), prefix
        # The official weights are 1 on all three parts.
        assert torch.equal((parts.refine | parts.mask | parts.reconstruct).float(), flat(f"{prefix}/weights"))
