"""Measures of clips over folds and ranks: every clip counts once, whoever has measured it."""

import threading

import pytest
import torch
from torch import Tensor

from magvit_scale.config import Refusal
from magvit_scale.metrics.frechet import FeatureStatistics, frechet_distance
from magvit_scale.metrics.inception_score import InceptionScores
from magvit_scale.metrics.protocol import InceptionScoreRule
from magvit_scale.metrics.selection import split_over_ranks
from magvit_scale.metrics.tally import Tally, best_of_groups

NUM_FOLDS, CLIPS, FEATURES = 2, 7, 3


def new_tally() -> Tally:
    return Tally(
        NUM_FOLDS, CLIPS, FEATURES, scores=("psnr",), inception=InceptionScores(FEATURES, NUM_FOLDS), codebook_size=5
    )


def filled(places: list[int], features: Tensor, batch_size: int = 3) -> Tally:
    tally = new_tally()
    for start in range(0, len(places), batch_size):
        part = torch.tensor(places[start : start + batch_size])
        tally.add_features(part, features[part])
        tally.add_scores(part, {"psnr": features[part, 0]})
        assert tally.inception is not None
        tally.inception.update(features[part], part // CLIPS)
        tally.add_codes(part % 5)
    return tally


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_any_number_of_ranks_gives_the_figures_of_one(world_size: int) -> None:
    features = torch.randn(NUM_FOLDS * CLIPS, FEATURES, generator=torch.Generator().manual_seed(0)).double() + 50
    parts = [
        filled(list(split_over_ranks(NUM_FOLDS * CLIPS, rank, world_size)), features) for rank in range(world_size)
    ]
    joined = _join(parts)
    for fold in range(NUM_FOLDS):
        own = features[fold * CLIPS : (fold + 1) * CLIPS]
        assert joined.statistics[fold].count == CLIPS
        assert torch.allclose(joined.statistics[fold].mean, own.mean(0), rtol=1e-13)
        assert torch.allclose(joined.statistics[fold].covariance(), torch.cov(own.T), rtol=1e-9)
    assert joined.scores["psnr"].tolist() == features[:, 0].tolist()
    assert joined.codes is not None
    assert joined.codes.tolist() == [3, 3, 3, 3, 2]
    assert joined.inception is not None
    assert joined.inception.counts.tolist() == [CLIPS, CLIPS]


def _join(parts: list[Tally]) -> Tally:
    """All ranks at once, as a collective does it: values are added in the order of the calls."""
    barrier, lock = threading.Barrier(len(parts)), threading.Lock()
    slots: dict[int, Tensor] = {}

    def run(tally: Tally) -> None:
        calls = iter(range(1000))

        def total(value: Tensor) -> Tensor:
            number = next(calls)
            with lock:
                slots[number] = slots.get(number, torch.zeros_like(value)) + value
            barrier.wait()
            return slots[number].clone()

        tally.join(total)

    threads = [threading.Thread(target=run, args=(tally,)) for tally in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return parts[-1]


def test_a_rank_without_a_clip_joins_too() -> None:
    features = torch.arange(float(NUM_FOLDS * CLIPS * FEATURES)).reshape(-1, FEATURES).double()
    joined = _join([filled(list(range(NUM_FOLDS * CLIPS)), features), new_tally()])
    assert joined.statistics[1].mean.tolist() == features[CLIPS:].mean(0).tolist()


def test_distances_are_of_the_folds_and_refuse_a_fold_with_a_gap() -> None:
    features = torch.randn(NUM_FOLDS * CLIPS, FEATURES, generator=torch.Generator().manual_seed(1)).double()
    real = []
    for fold in range(NUM_FOLDS):
        statistics = FeatureStatistics(FEATURES)
        statistics.update(features[fold * CLIPS : (fold + 1) * CLIPS] + fold)
        real.append(statistics)
    whole = filled(list(range(NUM_FOLDS * CLIPS)), features)
    assert whole.distances(real, "n-1") == pytest.approx([0, FEATURES], abs=1e-9)  # a shift by 1 in every feature
    assert whole.distances(real, "n") == [frechet_distance(*pair, "n") for pair in zip(real, whole.statistics,
                                                                                      strict=True)]  # fmt: skip
    with pytest.raises(ValueError, match="a fold of 6 clips, expected 7"):
        filled(list(range(NUM_FOLDS * CLIPS - 1)), features).distances(real, "n")


def test_the_best_sample_of_a_video_counts_and_others_do_not_pull_it_down() -> None:
    scores, groups = torch.tensor([1.0, 5.0, 3.0, 2.0]), torch.tensor([4, 0, 4, 0])
    assert best_of_groups(scores, groups).tolist() == [5.0, 3.0]
    tally = Tally(2, 2, FEATURES, scores=("psnr",))
    tally.add_scores(torch.tensor([0, 1, 2, 3]), {"psnr": scores})
    assert tally.score_of_folds("psnr") == [3.0, 2.5]
    assert tally.score_of_folds("psnr", torch.tensor([0, 0, 1, 2])) == [5.0, 2.5]


def test_a_score_that_is_not_finite_is_refused_with_its_name() -> None:
    with pytest.raises(Refusal, match="psnr of 1 of 2 clips is not finite"):
        new_tally().add_scores(torch.tensor([0, 1]), {"psnr": torch.tensor([1.0, float("nan")])})


def test_groups_of_a_split_repeat_mix_the_order_of_generation() -> None:
    rule = InceptionScoreRule(num_samples=100, num_splits=10, num_repeats=2)
    places = rule.shuffled(seed=3)
    assert sorted(places.tolist()) == list(range(200))
    assert set((places[:100] // 100).tolist()) == {0}  # within the repeat
    sizes = [(rule.groups_of(places) == group).sum() for group in range(20)]
    assert sizes == [10] * 20
    # A run of ten neighbours, as of one class, is spread over the groups.
    assert len(set(rule.groups_of(places)[:10].tolist())) > 4
    one = InceptionScoreRule(num_samples=50, num_splits=1, num_repeats=4)
    assert one.groups_of(one.shuffled(seed=3)).tolist() == [0] * 50 + [1] * 50 + [2] * 50 + [3] * 50
