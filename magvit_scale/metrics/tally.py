"""What is measured of one set of clips, fold by fold: each rank adds its share, `join` makes the whole set of it."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from magvit_scale.config import Refusal
from magvit_scale.metrics.frechet import FeatureStatistics, frechet_distance
from magvit_scale.metrics.inception_score import InceptionScores
from magvit_scale.metrics.protocol import Divisor

SumOverRanks = Callable[[Tensor], Tensor]
"""The sum of a float64 tensor over all ranks. Collective."""


class Tally:
    """Running measures of clips that are numbered, one fold after the other.

    Attributes:
        statistics: of the features, one of each fold.
        scores: name -> 'n' float64, the score of each clip; 0 where a clip is another rank's.
        inception: sums of the inception score; null where it is not asked for.
        codes: 'k' float64, how often each code occurred; null where it is not asked for.
    """

    def __init__(
        self,
        num_folds: int,
        clips_per_fold: int,
        num_features: int,
        *,
        scores: Sequence[str] = (),
        inception: InceptionScores | None = None,
        codebook_size: int = 0,
    ) -> None:
        """Starts with nothing measured. Every rank must name the same measures."""
        self.clips_per_fold = clips_per_fold
        self.statistics = [FeatureStatistics(num_features) for _ in range(num_folds)]
        num_clips = num_folds * clips_per_fold
        self.scores = {name: torch.zeros(num_clips, dtype=torch.float64) for name in scores}
        self.inception = inception
        self.codes = torch.zeros(codebook_size, dtype=torch.float64) if codebook_size else None

    def add_features(self, places: Tensor, features: Tensor) -> None:
        """Adds features 'b d' of the clips at `places`, 'b' int64.

        Raises:
            Refusal: see `FeatureStatistics.update`.
        """
        folds = places // self.clips_per_fold
        for fold in folds.unique().tolist():
            self.statistics[fold].update(features[(folds == fold).to(features.device)])

    def add_scores(self, places: Tensor, scores: Mapping[str, Tensor]) -> None:
        """Adds scores 'b' of the clips at `places`.

        Raises:
            Refusal: a score is not finite.
        """
        for name, values in scores.items():
            values = values.detach().double().cpu()
            if bad := int((~values.isfinite()).sum()):
                raise Refusal(f"{name} of {bad} of {len(values)} clips is not finite; look at the clips and the models")
            self.scores[name][places] = values

    def add_codes(self, token_ids: Tensor) -> None:
        """Counts codes, integers of any shape."""
        if self.codes is not None:
            self.codes += torch.bincount(token_ids.flatten().cpu(), minlength=len(self.codes)).double()

    def join(self, sum_over_ranks: SumOverRanks) -> None:
        """Becomes the tally of all ranks. Collective: every rank must call."""
        for statistics in self.statistics:
            statistics.join(sum_over_ranks)
        self.scores = {name: sum_over_ranks(values) for name, values in self.scores.items()}
        if self.inception is not None:
            self.inception.join(sum_over_ranks)
        if self.codes is not None:
            self.codes = sum_over_ranks(self.codes)

    def distances(self, real: Sequence[FeatureStatistics], divisor: Divisor) -> list[float]:
        """The Frechet distance of each fold to that of the real set.

        Raises:
            ValueError: a fold is not of all its clips, which would be a defect here.
        """
        for statistics in self.statistics:
            if statistics.count != self.clips_per_fold:
                raise ValueError(f"a fold of {statistics.count} clips, expected {self.clips_per_fold}")
        pairs = zip(real, self.statistics, strict=True)
        return [frechet_distance(one, other, divisor) for one, other in pairs]

    def score_of_folds(self, name: str, groups: Tensor | None = None) -> list[float]:
        """The mean of a score in each fold.

        Args:
            name: of the score.
            groups: 'n' int64 in [0, number of groups): of clips of one group only the best, the highest, counts.
        """
        folds = self.scores[name].split(self.clips_per_fold)
        if groups is None:
            return [fold.mean().item() for fold in folds]
        parts = zip(folds, groups.split(self.clips_per_fold), strict=True)
        return [best_of_groups(fold, part).mean().item() for fold, part in parts]


def best_of_groups(scores: Tensor, groups: Tensor) -> Tensor:
    """The highest of the scores, 'n', of each group that occurs in `groups`, 'n' int64."""
    found, places = groups.unique(return_inverse=True)
    lowest = torch.full((len(found),), -torch.inf, dtype=scores.dtype)
    return lowest.scatter_reduce(0, places, scores, "amax")
