"""GroupNorm in float32, and a form of it whose passes a compiler can fuse."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magvit_scale.precision import without_autocast


class GroupNorm(nn.GroupNorm):
    """Normalises in float32 whatever autocast says, and answers in the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        """'b c ...' -> 'b c ...'."""
        with without_autocast(x):
            weight, bias = self.weight.float(), self.bias.float()
            if torch.compiler.is_dynamo_compiling():
                return normalise_by_channels(x.float(), weight, bias, self.num_groups, self.eps).to(x.dtype)
            return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)


def normalise_by_channels(x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float) -> Tensor:
    """`F.group_norm` by sums over the cells of each channel, which lie side by side on a GPU, see `Convolution3d`; a
    group's channels do not. Compiled, two passes over the input each way, one of them for the sums.

    Args:
        x: 'b c ...' float32.
        weight: 'c'.
        bias: 'c'.
        num_groups: divides c.
        eps: added to the variances.
    """
    variances, means = torch.var_mean(x, list(range(2, x.ndim)), correction=0)
    mean = mean_of_groups(means, num_groups)
    # Not a mean of squares less a squared mean, which would lose digits.
    scale = weight * torch.rsqrt(mean_of_groups(variances + (means - mean).square(), num_groups) + eps)
    over_cells = (..., *[None] * (x.ndim - 2))
    return x * scale[over_cells] + (bias - mean * scale)[over_cells]


def mean_of_groups(of_channels: Tensor, num_groups: int) -> Tensor:
    """'b c' -> 'b c': each channel has its group's mean."""
    groups = of_channels.unflatten(1, (num_groups, -1))
    return groups.mean(2, keepdim=True).expand_as(groups).flatten(1)
