"""Vector quantiser with a gradient-trained codebook and an entropy loss (MAGVIT section 3.1; spec section 2)."""

from functools import partial
from math import sqrt
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from magvit_scale.precision import without_autocast

MOST_DISTANCES = 2**24
"""Distances to the codebook held at once, 64 MiB, and as much of each thing that the entropy loss makes of them. Those
of more vectors are computed part by part, and part by part again in the backward pass."""


class Quantized(NamedTuple):
    """What quantising gives: the vectors for the decoder, their ids, and the parts of the loss, unweighted scalars.

    A tuple, since DeepSpeed finds a module's output tensors in nothing else, and ZeRO 3 gathers by them.
    """

    latents: Tensor
    """'b d t h w'; straight-through: the gradient of the decoder's input goes to the encoder's output."""
    token_ids: Tensor
    """'b t h w' int64 in [0, codebook_size)."""
    commitment_loss: Tensor
    """Moves the encoder towards the codebook."""
    codebook_loss: Tensor
    """Moves the codebook towards the encoder."""
    entropy_loss: Tensor
    """Mean entropy per vector minus the entropy of the batch's mean: low when choices are sharp and all codes are
    used."""


class VectorQuantizer(nn.Module):
    """Nearest codebook entry in Euclidean distance; the first on ties."""

    def __init__(self, codebook_size: int, embedding_dim: int, entropy_temperature: float = 0.01):
        super().__init__()
        bound = sqrt(3.0 / codebook_size)
        self.codebook = nn.Parameter(torch.empty(codebook_size, embedding_dim).uniform_(-bound, bound))
        self.codebook_size, self.entropy_temperature = codebook_size, entropy_temperature

    def forward(self, latents: Tensor) -> Quantized:
        """Quantises 'b d t h w' latents; distances and losses are computed in float32, under autocast too."""
        with without_autocast(latents):
            return self._quantize(latents)

    def _quantize(self, latents: Tensor) -> Quantized:
        vectors = rearrange(latents.float(), "b d t h w -> (b t h w) d")
        ids, entropy_loss = self._compare(vectors)
        # Not by indexing, whose gradient a GPU adds up vector by vector where many have one code.
        chosen = F.embedding(ids, self.codebook.float())
        b, _, t, h, w = latents.shape
        straight_through = vectors + (chosen - vectors).detach()
        return Quantized(
            latents=rearrange(straight_through, "(b t h w) d -> b d t h w", b=b, t=t, h=h, w=w).to(latents.dtype),
            token_ids=rearrange(ids, "(b t h w) -> b t h w", b=b, t=t, h=h, w=w),
            commitment_loss=F.mse_loss(vectors, chosen.detach()),
            codebook_loss=F.mse_loss(chosen, vectors.detach()),
            entropy_loss=entropy_loss,
        )

    def _compare(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """'n d' float32 -> 'n' ids of the nearest entries, and the entropy loss."""
        parts = vectors.split(max(1, MOST_DISTANCES // self.codebook_size))
        if len(parts) > 1 and torch.is_grad_enabled():
            recompute = partial(checkpoint, self._compare_part, use_reentrant=False, preserve_rng_state=False)
            found = [recompute(part) for part in parts]
        else:
            found = [self._compare_part(part) for part in parts]
        ids, entropies, probabilities = zip(*found, strict=True)
        return torch.cat(ids), _entropy_loss(sum(entropies), sum(probabilities), len(vectors))

    def _compare_part(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        distances = self.compute_distances(vectors)
        return distances.argmin(dim=1), *_sum_entropies(-distances / self.entropy_temperature)

    def compute_distances(self, vectors: Tensor) -> Tensor:
        """'n d' -> 'n k' float32 squared distances to every entry: |x|^2 - 2 x.e + |e|^2."""
        with without_autocast(vectors):
            vectors, codebook = vectors.float(), self.codebook.float()
            return vectors.square().sum(1, keepdim=True) - 2 * vectors @ codebook.T + codebook.square().sum(1)

    def tokenize(self, latents: Tensor) -> Tensor:
        """'b d t h w' latents -> 'b t h w' int64 ids, without the losses."""
        b, _, t, h, w = latents.shape
        ids = self.compute_distances(rearrange(latents.float(), "b d t h w -> (b t h w) d")).argmin(dim=1)
        return rearrange(ids, "(b t h w) -> b t h w", b=b, t=t, h=h, w=w)

    def look_up(self, token_ids: Tensor) -> Tensor:
        """'b t h w' ids -> 'b d t h w' rows of the codebook."""
        return rearrange(self.codebook[token_ids], "b t h w d -> b d t h w")


def compute_entropy_loss(logits: Tensor) -> Tensor:
    """Mean entropy of the rows' softmax minus the entropy of the mean row; 'n k' float32 (spec section 2, `softmax`
    type).
    """
    return _entropy_loss(*_sum_entropies(logits), len(logits))


def _sum_entropies(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Of 'n k' logits the sum of the rows' entropies, and the 'k' sum of their probabilities."""
    log_probabilities = F.log_softmax(logits, dim=1)
    probabilities = log_probabilities.exp()
    return -(probabilities * log_probabilities).sum(dim=1).sum(), probabilities.sum(dim=0)


def _entropy_loss(sum_of_entropies: Tensor, sum_of_probabilities: Tensor, count: int) -> Tensor:
    mean_probabilities = sum_of_probabilities / count
    batch_entropy = -(mean_probabilities * (mean_probabilities + 1e-5).log()).sum()
    return sum_of_entropies / count - batch_entropy
