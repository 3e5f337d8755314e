"""The inception score against its definition, at its bounds, over ranks, and in three conventions."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from magvit_scale.config import Refusal
from magvit_scale.metrics.inception_score import InceptionScores
from magvit_scale.metrics.protocol import MAGVIT_SCORE, STYLEGAN_V_SCORE, TGANV2_SCORE, InceptionScoreRule


def logits_of(seed: int, num_clips: int, num_classes: int = 7) -> torch.Tensor:
    return torch.from_numpy(3 * np.random.default_rng(seed).standard_normal((num_clips, num_classes)))


def score_by_definition(logits: torch.Tensor) -> float:
    """exp of the mean over the clips of KL(p(y|x) || p(y)), in plain numpy."""
    exponentials = np.exp(logits.numpy())
    conditional = exponentials / exponentials.sum(axis=1, keepdims=True)
    marginal = conditional.mean(axis=0)
    return float(np.exp((conditional * np.log(conditional / marginal)).sum(axis=1).mean()))


def scores_of(logits: torch.Tensor, groups: list[int], num_groups: int) -> InceptionScores:
    scores = InceptionScores(logits.shape[1], num_groups)
    scores.update(logits, torch.tensor(groups))
    return scores


def test_each_group_has_the_score_of_its_definition() -> None:
    logits, groups = logits_of(0, 30), [0] * 11 + [1] * 19
    expected = [score_by_definition(logits[:11]), score_by_definition(logits[11:])]
    scores = scores_of(logits, groups, 2)
    assert scores.scores().tolist() == pytest.approx(expected, rel=1e-12)
    assert scores.result() == pytest.approx((np.mean(expected), np.std(expected)), rel=1e-12)


def test_a_classifier_that_is_sure_of_every_class_scores_their_number() -> None:
    sure = 1000 * torch.eye(101, dtype=torch.float64)
    assert scores_of(sure, [0] * 101, 1).result() == pytest.approx((101, 0), rel=1e-12)


def test_clips_that_look_alike_score_1() -> None:
    assert scores_of(logits_of(1, 1).expand(50, 7), [0] * 50, 1).result()[0] == pytest.approx(1, rel=1e-12)


def test_logarithms_of_probabilities_will_do_and_a_probability_of_0_is_no_nan() -> None:
    probabilities = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]], dtype=torch.float64)
    marginal = probabilities.mean(dim=0)
    divergences = [math.log(1 / marginal[0]), 0.5 * math.log(0.5 / marginal[0]) + 0.5 * math.log(0.5 / marginal[1])]
    assert scores_of(probabilities.log(), [0, 0], 1).result()[0] == pytest.approx(
        math.exp(sum(divergences) / 2), rel=1e-12
    )


def test_logits_in_half_precision_are_summed_in_float64() -> None:
    logits = logits_of(2, 4000).bfloat16()
    assert scores_of(logits, [0] * 4000, 1).result()[0] == pytest.approx(
        score_by_definition(logits.double()), rel=1e-12
    )


@given(owners=st.lists(st.integers(0, 3), min_size=24, max_size=24), order=st.permutations(range(4)))
@settings(deadline=None, max_examples=40)
def test_scores_do_not_depend_on_how_ranks_share_the_clips(owners: list[int], order: list[int]) -> None:
    rule = InceptionScoreRule(num_samples=12, num_splits=5, num_repeats=2)
    logits, groups = logits_of(3, 24), torch.from_numpy(rule.groups_of(np.arange(24)))
    total = InceptionScores(7, rule.num_groups)
    for rank in order:
        own = torch.tensor([owner == rank for owner in owners])
        part = InceptionScores(7, rule.num_groups)
        part.update(logits[own], groups[own])
        total.merge(part)
    whole = scores_of(logits, groups.tolist(), rule.num_groups)
    torch.testing.assert_close(total.scores(), whole.scores(), rtol=1e-12, atol=0)


def test_groups_of_the_three_conventions() -> None:
    sizes = np.bincount(STYLEGAN_V_SCORE.groups_of(np.arange(2_048))).tolist()
    bounds = [i * 2_048 // 10 for i in range(11)]
    assert sizes == [end - start for start, end in pairwise(bounds)]
    assert set(sizes) == {204, 205}
    assert TGANV2_SCORE.groups_of(np.array([0, 2_047, 2_048, 20_479])).tolist() == [0, 0, 1, 9]
    assert MAGVIT_SCORE.groups_of(np.array([9_999, 10_000, 39_999])).tolist() == [0, 1, 3]


def test_ten_splits_of_2048_keep_a_perfect_generator_far_below_101() -> None:
    labels = torch.from_numpy(np.random.default_rng(4).integers(0, 101, 2_048))
    sure = 1000 * torch.eye(101, dtype=torch.float64)[labels]
    splits = InceptionScores(101, 10)
    splits.update(sure, torch.from_numpy(STYLEGAN_V_SCORE.groups_of(np.arange(2_048))))
    assert splits.result()[0] == pytest.approx(76.4, abs=3)  # spec of metrics, section 3: 76.4 +- 2.8 for one split
    assert scores_of(sure, [0] * 2_048, 1).result()[0] == pytest.approx(98.5, abs=0.8)


@pytest.mark.parametrize(("samples", "splits", "repeats"), [(4, 5, 1), (4, 0, 1), (4, 1, 0)])
def test_a_split_without_a_sample_is_refused(samples: int, splits: int, repeats: int) -> None:
    with pytest.raises(Refusal, match=f"{samples} samples in {splits} splits, {repeats} repeats"):
        InceptionScoreRule(num_samples=samples, num_splits=splits, num_repeats=repeats)


def test_an_empty_group_and_logits_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(Refusal, match="1 of 2 groups have no clip"):
        scores_of(logits_of(5, 3), [0, 0, 0], 2).result()
    logits = logits_of(5, 3)
    logits[1, 2] = float("nan")
    with pytest.raises(Refusal, match="logits of 1 of 3 clips are not numbers"):
        scores_of(logits, [0, 0, 0], 1)
