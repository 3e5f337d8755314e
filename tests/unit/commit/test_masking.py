"""Mask schedules and COMMIT's assignment against the specification's numbers, and what holds for any draw."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from magvit_scale.commit.condition import Condition, build_condition
from magvit_scale.commit.masking import Assignment, assign, choose_masked, count_masked, mask_ratio, mask_share
from magvit_scale.commit.tasks import MASK_TOKEN
from magvit_scale.config import TASKS, Refusal, Task, TransformerConfig

SCHEDULES = ("cosine", "uniform", "exp", "log")
STILL_MASKED: dict[str, list[int]] = {
    "cosine": [1015, 989, 946, 886, 812, 724, 623, 511, 391, 265, 133],
    "exp": [1022, 1020, 1018, 1013, 1006, 992, 966, 922, 842, 701, 449],
    "uniform": [938, 853, 768, 682, 597, 512, 426, 341, 256, 170, 85],
}


@pytest.mark.parametrize("schedule", STILL_MASKED)
def test_tokens_still_masked_after_each_of_twelve_steps(schedule: str) -> None:
    ratio = mask_ratio(torch.arange(1, 12) / 12, schedule, 1024)
    assert count_masked(ratio, 1024, "floor").tolist() == STILL_MASKED[schedule]


@pytest.mark.parametrize("schedule", [*SCHEDULES, "pow2.5", "poly:-1.0,1.0"])
@pytest.mark.parametrize("num_tokens", [16, 1024])
def test_schedules_fall_from_one_to_the_smallest_ratio(schedule: str, num_tokens: int) -> None:
    ratio = mask_ratio(torch.linspace(0, 1, 101), schedule, num_tokens)
    assert (ratio.diff() <= 0).all()
    # 1 - 1/N is where `exp` starts.
    assert ratio[0].item() == pytest.approx(1 - 1 / num_tokens if schedule == "exp" else 1.0)
    assert ratio[-1].item() == pytest.approx(1e-6)


@pytest.mark.parametrize("schedule", [*SCHEDULES, "pow2", "pow0.5", "poly:0.5,-1.5,1"])
def test_schedules_are_their_formulas(schedule: str) -> None:
    r = np.linspace(0.02, 0.98, 25)
    expected = {
        "cosine": np.cos(np.pi * r / 2),
        "uniform": 1 - r,
        "exp": 1 - 512.0 ** -(1 - r),
        "log": np.clip(-np.log2(r) / 9, 1e-6, 1),
        "pow2": 1 - r**2,
        "pow0.5": 1 - np.sqrt(r),
        "poly:0.5,-1.5,1": 0.5 * r**2 - 1.5 * r + 1,
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


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(Refusal, match=r"schedule=cubic: expected cosine, .*pow<X>.*poly"):
        mask_ratio(torch.tensor(0.5), "cubic", 16)


def test_of_equal_scores_the_first_are_masked() -> None:
    assert choose_masked(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), torch.tensor([2])).tolist() == [
        [False, True, True, False]
    ]


def test_only_maskable_tokens_are_masked_and_the_share_is_of_them() -> None:
    scores = torch.rand(3, 40, generator=torch.Generator().manual_seed(0))
    is_maskable = torch.arange(40)[None] >= torch.tensor([0, 10, 40])[:, None]
    masked = mask_share(scores, torch.tensor([0.5, 0.51, 1.0]), is_maskable, "floor")
    assert masked.sum(1).tolist() == [20, 15, 0]
    assert not (masked & ~is_maskable).any()
    assert mask_share(scores, torch.tensor([0.5, 0.51, 1.0]), is_maskable, "ceil").sum(1).tolist() == [20, 16, 0]


def example(task: Task, conditioning: str, shape: tuple[int, int, int], batch: int = 3) -> tuple[Tensor, Condition]:
    """Tokens below 50 and their condition: 100 more where it is the canvas's."""
    n = shape[0] * shape[1] * shape[2]
    tokens = torch.randint(0, 50, (batch, n), generator=torch.Generator().manual_seed(0))
    model = TransformerConfig(conditioning=conditioning)  # type: ignore[arg-type]
    shown = tokens if conditioning == "latent" else tokens + 100
    return tokens, build_condition([task] * batch, shown, shape, model)


def appendix_assignment(conditioning: str) -> Assignment:
    """The worked example of spec appendix A, sample 0: latents 'n' = (2 4 4)."""
    k = torch.arange(32)
    tokens = 7 * k[None] % 64
    model = TransformerConfig(conditioning=conditioning)  # type: ignore[arg-type]
    condition = build_condition(["FP"], (tokens + 1) % 64, (2, 4, 4), model)
    scores = (0.5 + 0.5 * torch.sin(1.7 * k + 0.2))[None]
    is_masked = mask_share(scores, torch.tensor([0.4]), ~condition.is_fixed, "floor")
    return assign(tokens, condition, is_masked)


def test_assignment_of_the_specifications_example() -> None:
    assignment = appendix_assignment("commit")
    # fmt: off
    expected = [0, 7, 15, 22, 28, 35, 43, 50, 56, 63, 7, 13, 20, 27, 35, 41,
                48, -1, -1, 5, 12, -1, 26, 33, 40, -1, 54, 61, -1, -1, 18, 25]
    # fmt: on
    assert assignment.inputs.tolist() == [expected]
    assert (assignment.refine | assignment.mask).sum().item() == 12
    assert assignment.mask.nonzero()[:, 1].tolist() == [k for k, token in enumerate(expected) if token == -1]


def test_assignment_of_the_specifications_example_with_a_fixed_canvas() -> None:
    assignment = appendix_assignment("canvas")
    # fmt: off
    expected = [1, 8, 15, 22, 29, 36, 43, 50, 57, 0, 7, 14, 21, 28, 35, 42,
                48, -1, -1, 5, 12, -1, 26, 33, 40, -1, 54, 61, -1, -1, 18, 25]
    # fmt: on
    assert assignment.inputs.tolist() == [expected]
    assert not assignment.refine.any()
    assert (assignment.mask | assignment.reconstruct).tolist() == [[False] * 16 + [True] * 16]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    st.sampled_from((*TASKS, "FP5")),
    st.floats(1e-6, 1.0),
    st.integers(0, 10_000),
    st.sampled_from(["commit", "canvas", "latent", "prefix"]),
    st.sampled_from([(4, 4, 4), (3, 6, 8), (4, 8, 8)]),
)
def test_the_three_parts_are_disjoint_complete_and_shown_as_they_say(
    task: Task, ratio: float, seed: int, conditioning: str, shape: tuple[int, int, int]
) -> None:
    tokens, condition = example(task, conditioning, shape)
    scores = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    is_masked = mask_share(scores, torch.full((3,), ratio, dtype=torch.float64), ~condition.is_fixed, "floor")
    parts = assign(tokens, condition, is_masked)
    fixed, num_maskable = condition.is_fixed, int((~condition.is_fixed[0]).sum())
    assert ((parts.refine.int() + parts.mask.int() + parts.reconstruct.int() + fixed.int()) == 1).all()
    assert ((parts.refine | parts.mask).sum(1) == max(1, int(num_maskable * ratio))).all()
    assert not (parts.refine & ~condition.where).any()
    assert not (parts.mask & condition.where).any()
    assert fixed.any() == (conditioning in ("canvas", "latent") and task != "CG")
    assert parts.refine.any() <= (conditioning == "commit")
    assert torch.equal(parts.inputs[parts.refine | fixed], condition.tokens[parts.refine | fixed])
    assert (parts.inputs[parts.mask] == MASK_TOKEN).all()
    assert torch.equal(parts.inputs[parts.reconstruct], tokens[parts.reconstruct])


def test_what_is_fixed_is_never_masked_whatever_was_drawn() -> None:
    tokens, condition = example("OPC", "canvas", (4, 4, 4))
    parts = assign(tokens, condition, torch.ones_like(tokens, dtype=torch.bool))
    assert torch.equal(parts.mask, ~condition.is_fixed)
    assert torch.equal(parts.inputs, condition.start)
    assert not parts.reconstruct.any()


def test_assigning_leaves_its_arguments_alone() -> None:
    tokens, condition = example("OPV", "commit", (1, 2, 4))
    before, canvas = tokens.clone(), condition.tokens.clone()
    assign(tokens, condition, torch.ones_like(tokens, dtype=torch.bool))
    assert torch.equal(tokens, before)
    assert torch.equal(condition.tokens, canvas)
