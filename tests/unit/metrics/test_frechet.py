"""The Frechet distance against closed forms and rank-deficient sets; folds; the fixed features."""

from itertools import pairwise
from random import Random

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from magvit_scale.config import Refusal
from magvit_scale.metrics.frechet import (
    FeatureStatistics,
    RandomFeatures,
    frechet_distance,
    frechet_over_folds,
)
from magvit_scale.metrics.protocol import Divisor


def statistics_of(features: np.ndarray) -> FeatureStatistics:
    statistics = FeatureStatistics(features.shape[1])
    statistics.update(torch.from_numpy(features))
    return statistics


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def test_statistics_are_those_of_numpy_however_they_were_streamed() -> None:
    values = 1e6 + normal(0, 100, 5)
    first, second = FeatureStatistics(5), FeatureStatistics(5)
    first.update(torch.from_numpy(values[:1]))
    first.update(torch.from_numpy(values[1:40]))
    second.update(torch.from_numpy(values[40:]))
    first.merge(second)
    first.merge(FeatureStatistics(5))
    np.testing.assert_allclose(first.mean, values.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(first.covariance(), np.cov(values, rowvar=False), rtol=1e-6, atol=1e-9)


def test_distance_of_diagonal_gaussians_has_its_closed_form() -> None:
    values = normal(1, 500, 4)
    values = (values - values.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(values, rowvar=False))).T
    scale, shift = np.array([1.0, 2.0, 3.0, 0.5]), np.array([1.0, 0.0, -2.0, 0.0])
    distance = frechet_distance(statistics_of(values), statistics_of(values * scale + shift))
    assert distance == pytest.approx(((scale - 1) ** 2).sum() + (shift**2).sum(), rel=1e-10)


def test_rank_deficient_sets_are_exact() -> None:
    values = normal(2, 6, 64)  # covariance of rank 5 in 64 dimensions
    assert frechet_distance(statistics_of(values), statistics_of(values)) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(statistics_of(values), statistics_of(3 * values)) == pytest.approx(
        4 * ((values.mean(axis=0) ** 2).sum() + np.cov(values, rowvar=False).trace()), rel=1e-10
    )


def test_disjoint_subspaces_add_their_variances() -> None:
    left, right = np.zeros((50, 8)), np.zeros((50, 8))
    left[:, :4], right[:, 4:] = normal(3, 50, 4), normal(4, 50, 4)
    means = ((left.mean(axis=0) - right.mean(axis=0)) ** 2).sum()
    traces = np.cov(left, rowvar=False).trace() + np.cov(right, rowvar=False).trace()
    assert frechet_distance(statistics_of(left), statistics_of(right)) == pytest.approx(means + traces, rel=1e-10)


def test_one_clip_has_no_covariance() -> None:
    with pytest.raises(Refusal, match=r"1 clip\(s\); a covariance needs 2"):
        statistics_of(np.zeros((1, 3))).covariance()


def test_folds_are_consecutive_and_their_spread_has_no_bessel_correction() -> None:
    left, right = torch.from_numpy(normal(5, 12, 3)), torch.from_numpy(normal(6, 24, 3))
    parts = [
        frechet_distance(
            statistics_of(left[4 * k : 4 * k + 4].numpy()), statistics_of(right[8 * k : 8 * k + 8].numpy())
        )
        for k in range(3)
    ]
    assert frechet_over_folds(left, right, 3) == pytest.approx((np.mean(parts), np.std(parts)), rel=1e-12)
    assert frechet_over_folds(left, right, 1)[1] == 0.0


@pytest.mark.parametrize(("num_clips", "num_folds"), [(10, 4), (4, 4)])
def test_folds_that_are_unequal_or_of_one_clip_are_refused(num_clips: int, num_folds: int) -> None:
    with pytest.raises(Refusal, match=f"{num_clips} clips do not make {num_folds} equal folds of 2 or more"):
        frechet_over_folds(torch.zeros(16, 3), torch.zeros(num_clips, 3), num_folds)


def test_random_features_are_the_same_everywhere() -> None:
    clip = torch.linspace(0, 1, 2 * 3 * 4 * 16 * 16).reshape(2, 3, 4, 16, 16)
    features = RandomFeatures()(clip)
    assert features.shape == (2, 64)
    assert torch.equal(features, RandomFeatures(seed=0)(clip))
    assert not torch.allclose(features, RandomFeatures(seed=1)(clip), atol=1e-2)
    assert RandomFeatures().layers[0].weight.flatten()[:3].tolist() == pytest.approx(WEIGHTS_OF_SEED_0, abs=1e-7)


WEIGHTS_OF_SEED_0 = [-0.2658802568912506, -0.14068280160427094, -0.2115129679441452]


def square_clips(seed: int, *, moves: bool) -> torch.Tensor:
    """White squares at random places, 64 3 8 32 32, still or running to the right at a random speed."""
    random = np.random.default_rng(seed)
    clips = torch.zeros(64, 3, 8, 32, 32)
    for clip in clips:
        top, left = random.integers(0, 26, 2)
        speed = random.integers(1, 4) if moves else 0
        for frame in range(8):
            shifted = (left + speed * frame) % 26
            clip[:, frame, top : top + 6, shifted : shifted + 6] = 1
    return clips


def test_random_features_tell_motion_from_stillness() -> None:
    network, sets = RandomFeatures(), []
    for clips in (square_clips(0, moves=True), square_clips(1, moves=True), square_clips(2, moves=False)):
        sets.append(FeatureStatistics(64))
        sets[-1].update(network(clips))
    assert frechet_distance(sets[0], sets[2]) > 2 * frechet_distance(sets[0], sets[1])


@pytest.mark.parametrize("divisor", ["n-1", "n"])
@pytest.mark.parametrize(("num_first", "num_second"), [(60, 45), (12, 30), (2, 2)])
def test_the_distance_is_that_of_eigenvalues_in_either_divisor(
    divisor: Divisor, num_first: int, num_second: int
) -> None:
    spectrum = 1 / np.arange(1, 41)
    left, right = normal(7, num_first, 40) * spectrum, 0.1 + normal(8, num_second, 40) * spectrum
    ddof = 1 if divisor == "n-1" else 0
    covariances = [np.cov(values, rowvar=False, ddof=ddof) for values in (left, right)]
    cross = np.sqrt(scipy.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(min=0)).sum()
    expected = ((left.mean(axis=0) - right.mean(axis=0)) ** 2).sum() + sum(map(np.trace, covariances)) - 2 * cross
    # The product's null space costs the reference half of its digits.
    assert frechet_distance(statistics_of(left), statistics_of(right), divisor) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("num_clips", [2, 50, 400])
def test_equal_sets_have_no_distance_whatever_their_rank(num_clips: int) -> None:
    statistics = statistics_of(5 + 100 * normal(9, num_clips, 100) / np.arange(1, 101) ** 2)
    assert frechet_distance(statistics, statistics) < 1e-12 * statistics.covariance().trace().item()


def test_the_divisor_n_makes_the_trace_smaller_by_1_of_n() -> None:
    still, moving = torch.zeros(8, 3), torch.from_numpy(normal(10, 8, 3))
    moving -= moving.mean(dim=0)
    biased = frechet_over_folds(still, moving, 1, "n")[0]
    assert biased == pytest.approx(7 / 8 * frechet_over_folds(still, moving, 1)[0], rel=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    features = torch.zeros(5, 3)
    features[3, 1] = value
    with pytest.raises(Refusal, match="features of 1 of 5 clips are not finite"):
        FeatureStatistics(3).update(features)


@given(cuts=st.lists(st.integers(0, 30), max_size=5), order=st.randoms())
@settings(deadline=None, max_examples=40)
def test_statistics_do_not_depend_on_how_ranks_share_the_clips(cuts: list[int], order: Random) -> None:
    values = torch.from_numpy(100 + normal(11, 30, 4))
    bounds = [0, *sorted(cuts), 30]
    parts = []
    for start, end in pairwise(bounds):
        parts.append(FeatureStatistics(4))
        parts[-1].update(values[start:end])
    order.shuffle(parts)
    total = FeatureStatistics(4)
    for part in parts:
        total.merge(part)
    assert total.count == 30
    torch.testing.assert_close(total.mean, values.mean(dim=0), rtol=1e-13, atol=0)
    torch.testing.assert_close(total.covariance(), torch.cov(values.T), rtol=1e-10, atol=1e-11)
