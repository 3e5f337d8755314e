"""The Frechet distance between two sets of features, and an untrained network that gives features for demos.

`RandomFeatures` is NOT the I3D of FVD. Distances in its features rank runs of this project against each other at best;
they are comparable with no paper, and every result that uses them says so.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from magvit_scale.config import Refusal
from magvit_scale.metrics.protocol import Divisor


class FeatureStatistics:
    """Running mean and covariance of feature vectors in float64; `merge` joins those of another rank."""

    def __init__(self, num_features: int) -> None:
        """Starts with an empty set of vectors of length `num_features`."""
        self.count = 0
        self.mean = torch.zeros(num_features, dtype=torch.float64)
        """`d`."""
        self.scatter = torch.zeros(num_features, num_features, dtype=torch.float64)
        """`d d`, sum of the outer products of the deviations from the mean."""

    def update(self, features: Tensor) -> None:
        """Adds a batch of features, `n d`; an empty one adds nothing.

        Raises:
            Refusal: a feature is not finite, which no distance would show.
        """
        if len(features) == 0:
            return
        part = FeatureStatistics(self.mean.numel())
        values = features.detach().double().cpu()
        if bad := int((~values.isfinite()).any(dim=1).sum()):
            raise Refusal(
                f"Frechet distance: features of {bad} of {len(values)} clips are not finite; look at the clips and at "
                "the feature network's weights"
            )
        part.count, part.mean = len(values), values.mean(dim=0)
        centred = values - part.mean
        part.scatter = centred.T @ centred
        self.merge(part)

    def merge(self, other: "FeatureStatistics") -> None:
        """Adds vectors that `other` has seen (Chan et al.: no difference of large sums, so nothing cancels)."""
        if other.count == 0:
            return
        total = self.count + other.count
        shift = other.mean - self.mean
        self.scatter = self.scatter + other.scatter + torch.outer(shift, shift) * (self.count * other.count / total)
        self.mean = self.mean + shift * (other.count / total)
        self.count = total

    def join(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Becomes the statistics of what all ranks have seen, by sums alone. Collective: every rank must call.

        Args:
            sum_over_ranks: the sum of a float64 tensor over all ranks.
        """
        count, mean = self.count, self.mean
        self.count = int(sum_over_ranks(torch.tensor(count, dtype=torch.float64)))
        self.mean = sum_over_ranks(mean * count) / max(self.count, 1)
        shift = mean - self.mean
        self.scatter = sum_over_ranks(self.scatter + torch.outer(shift, shift) * count)

    def covariance(self, divisor: Divisor = "n-1") -> Tensor:
        """Covariance, `d d` float64.

        Raises:
            Refusal: there are fewer than two vectors.
        """
        if self.count < 2:
            raise Refusal(f"Frechet distance: {self.count} clip(s); a covariance needs 2 or more")
        return self.scatter / (self.count - 1 if divisor == "n-1" else self.count)


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics, divisor: Divisor = "n-1") -> float:
    """Squared 2-Wasserstein distance between the two Gaussians: |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2)
    (spec section 10.1).

    tr (S1 S2)^1/2 is the sum of the singular values of S1^1/2 S2^1/2. Both roots are symmetric, so it stays real and
    exact where a covariance has no full rank (fewer clips than features), where a general matrix root turns complex.
    """
    covariance_1, covariance_2 = first.covariance(divisor), second.covariance(divisor)
    cross = torch.linalg.svdvals(_symmetric_root(covariance_1) @ _symmetric_root(covariance_2)).sum()
    means = (first.mean - second.mean).square().sum()
    return max(0.0, (means + covariance_1.trace() + covariance_2.trace() - 2 * cross).item())


def frechet_over_folds(first: Tensor, second: Tensor, num_folds: int, divisor: Divisor = "n-1") -> tuple[float, float]:
    """Mean and standard deviation of the distance over consecutive parts of the sets (spec section 10.1).

    Args:
        first: features, `n d`; fold k of it is compared with fold k of `second`.
        second: features, `m d`.
        num_folds: equal parts into which each set falls; the official protocols take 4.
        divisor: of the covariances.

    Returns:
        Mean, and deviation from it with divisor `num_folds` (0 for one fold).

    Raises:
        Refusal: a set cannot be cut into `num_folds` equal parts of 2 or more.
    """
    for features in (first, second):
        if len(features) % num_folds or len(features) < 2 * num_folds:
            raise Refusal(f"Frechet distance: {len(features)} clips do not make {num_folds} equal folds of 2 or more")
    pairs = zip(first.chunk(num_folds), second.chunk(num_folds), strict=True)
    distances = np.array([frechet_distance(_statistics(one), _statistics(other), divisor) for one, other in pairs])
    return float(distances.mean()), float(distances.std())


def _statistics(features: Tensor) -> FeatureStatistics:
    statistics = FeatureStatistics(features.shape[1])
    statistics.update(features)
    return statistics


def _symmetric_root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    # Rounding noise of the null space would enter under the root, as 1e-8 instead of 1e-16.
    noise = values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    return (vectors * torch.where(values > noise, values, 0).sqrt()) @ vectors.T


class RandomFeatures(nn.Module):
    """Untrained 3D convolutions with fixed weights: clips -> 64 features. Not FVD, not comparable with any paper.

    The weights come from Philox's raw bits, which no numpy release may change, so every machine has the same network.
    """

    num_features = 64

    def __init__(self, seed: int = 0) -> None:
        """Draws the network of `seed`."""
        super().__init__()
        random = np.random.Philox(key=seed)
        widths = (3, 16, 32, self.num_features)
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [_fixed_convolution(random, fan_in, fan_out), nn.LeakyReLU(0.1)]
        self.layers = nn.Sequential(*layers).requires_grad_(False).eval()

    def forward(self, clip: Tensor) -> Tensor:
        """`b c t h w` in [0, 1], 3 channels -> `b 64`; mean over time and space of the last layer."""
        return reduce(self.layers(clip.float() * 2 - 1), "b c t h w -> b c", "mean")


def _fixed_convolution(random: np.random.Philox, fan_in: int, fan_out: int) -> nn.Conv3d:
    kernel = 3
    layer = nn.Conv3d(fan_in, fan_out, kernel, stride=2, padding=1, bias=False)
    uniform = (random.random_raw(layer.weight.numel()) >> np.uint64(11)) * 2.0**-53
    deviation = math.sqrt(2 / (fan_in * kernel**3))  # He: keeps the variance through the rectifier
    weight = torch.from_numpy((2 * uniform - 1) * math.sqrt(3) * deviation).float()
    layer.weight.data = rearrange(
        weight, "(o i t h w) -> o i t h w", o=fan_out, i=fan_in, t=kernel, h=kernel, w=kernel
    ).contiguous()
    return layer
