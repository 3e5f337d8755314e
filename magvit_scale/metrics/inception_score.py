"""The inception score, exp(E KL(p(y|x) || p(y))), in sums that ranks can add (spec of metrics, section 3).

Its value depends on how many clips a group holds: a perfect generator of UCF-101's 101 classes scores about
101 exp(-50 / n) at n clips per group, so conventions with different groups do not compare. `protocol.py` has the three
in circulation.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from magvit_scale.config import Refusal


class InceptionScores:
    """Running sums of each group in float64; `merge` adds those of another rank."""

    def __init__(self, num_classes: int, num_groups: int) -> None:
        """Starts with empty groups."""
        self.counts = torch.zeros(num_groups, dtype=torch.float64)
        """`g`."""
        self.probabilities = torch.zeros(num_groups, num_classes, dtype=torch.float64)
        """`g k`, sums of p(y|x)."""
        self.negative_entropies = torch.zeros(num_groups, dtype=torch.float64)
        """`g`, sums of p log p over classes and clips, nats."""

    def update(self, logits: Tensor, groups: Tensor) -> None:
        """Adds clips.

        Args:
            logits: `n k`; logarithms of probabilities will do, and minus infinity is a probability of 0.
            groups: `n` integers in [0, g), see `InceptionScoreRule.groups_of`.

        Raises:
            Refusal: a clip has no probabilities.
        """
        probabilities = logits.detach().double().cpu().softmax(dim=1)
        if bad := int(probabilities.isnan().any(dim=1).sum()):
            raise Refusal(
                f"inception score: logits of {bad} of {len(logits)} clips are not numbers; look at the clips and at "
                "the classifier's weights"
            )
        log_probabilities = logits.detach().double().cpu().log_softmax(dim=1)
        # Where p underflows to 0, p log p is 0, though log p may be minus infinity.
        negative_entropies = (probabilities * log_probabilities.clamp(min=torch.finfo(torch.float64).min)).sum(dim=1)
        groups = groups.cpu()
        self.counts.index_add_(0, groups, torch.ones_like(negative_entropies))
        self.probabilities.index_add_(0, groups, probabilities)
        self.negative_entropies.index_add_(0, groups, negative_entropies)

    def merge(self, other: "InceptionScores") -> None:
        """Adds clips that `other` has seen."""
        self.counts += other.counts
        self.probabilities += other.probabilities
        self.negative_entropies += other.negative_entropies

    def join(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Becomes the sums of all ranks. Collective: every rank must call."""
        self.counts = sum_over_ranks(self.counts)
        self.probabilities = sum_over_ranks(self.probabilities)
        self.negative_entropies = sum_over_ranks(self.negative_entropies)

    def scores(self) -> Tensor:
        """The score of each group, `g` float64 in [1, k].

        Raises:
            Refusal: a group has no clip.
        """
        if empty := int((self.counts == 0).sum()):
            raise Refusal(
                f"inception score: {empty} of {len(self.counts)} groups have no clip; give all samples of the protocol"
            )
        marginals = self.probabilities / self.counts.unsqueeze(1)
        return (self.negative_entropies / self.counts - torch.xlogy(marginals, marginals).sum(dim=1)).exp()

    def result(self) -> tuple[float, float]:
        """Mean over the groups, and deviation from it with divisor g (0 for one group).

        Raises:
            Refusal: a group has no clip.
        """
        scores = self.scores()
        return scores.mean().item(), scores.std(correction=0).item()
