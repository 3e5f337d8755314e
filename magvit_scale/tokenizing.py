"""Videos -> tokens of their views and condition canvases; and whether stored tokens are what comes out again."""

from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from magvit_scale.commit.tasks import canvases_of, condition_canvases
from magvit_scale.config import PrecomputeTokensConfig
from magvit_scale.data.clips import to_unit_range, views
from magvit_scale.data.order import keyed_generator
from magvit_scale.data.token_facts import TokenFacts
from magvit_scale.data.token_tar import Labels, Tokens, TokenTar
from magvit_scale.vqgan.autoencoder import VQGAN

NEAR_TIE = 1e-3
"""Two codes are as near as each other when their squared distances differ by less than this share of the squared
lengths: TF32 rounds to 1 in 2,000, and a GPU may round otherwise from run to run."""

EXACT_DEVICES = ("cpu",)
"""They give the same every time, so there a near tie is a difference like any other."""


@dataclass(frozen=True)
class Comparison:
    """How stored tokens compare with those that come out now."""

    videos: int = 0
    tokens: int = 0
    different: int = 0
    near_ties: int = 0
    """Of the different ones, those whose stored code is as near as the nearest."""

    def __add__(self, other: "Comparison") -> "Comparison":
        return Comparison(
            self.videos + other.videos,
            self.tokens + other.tokens,
            self.different + other.different,
            self.near_ties + other.near_ties,
        )


def tokenize_shard(
    config: PrecomputeTokensConfig, facts: TokenFacts, tokenizer: VQGAN, shard: int, device: torch.device
) -> tuple[Tokens, Labels, list[str]]:
    """Tokens of one clip shard: uint16 'n views canvases t h w', labels int64 'n', keys."""
    tokens: list[Tensor] = []
    labels: list[int] = []
    keys: list[str] = []
    for sample in views(config.clips, views=config.views, seed=config.seed, shard=shard):
        canvases = _canvases(config, sample["clip"].to(device))
        ids = torch.cat([_tokenize(tokenizer, part) for part in canvases.split(config.batch_size)])
        tokens.append(rearrange(ids, "(views canvases) t h w -> views canvases t h w", views=config.views))
        labels.append(int(sample["label"]))
        keys.append(sample["key"])
    found = torch.stack(tokens).cpu().numpy() if tokens else np.empty((0, *facts.clip_shape))
    return found.astype(np.uint16), np.array(labels, np.int64), keys


def compare_shard(
    config: PrecomputeTokensConfig, tokenizer: VQGAN, shard: int, stored: TokenTar, device: torch.device
) -> Comparison:
    """Tokenizes a share of one clip shard's videos again, drawn by the seed, in the same batches as the first time."""
    rows = {key: row for row, key in enumerate(stored.read_keys())}
    order = np.argsort(keyed_generator("verify", config.seed, shard).bit_generator.random_raw(len(rows)))
    chosen = {list(rows)[place] for place in order[: ceil(config.verify * len(rows))]}
    total = Comparison()
    for sample in views(config.clips, views=config.views, seed=config.seed, shard=shard, only=chosen):
        canvases = _canvases(config, sample["clip"].to(device))
        tokens = torch.from_numpy(stored.tokens[rows[sample["key"]]].astype(np.int64)).to(device)
        parts = rearrange(tokens, "views canvases t h w -> (views canvases) t h w").split(config.batch_size)
        for part, ids in zip(canvases.split(config.batch_size), parts, strict=True):
            total += compare(tokenizer, part, ids)
        total += Comparison(videos=1)
    return total


def _canvases(config: PrecomputeTokensConfig, clips: Tensor) -> Tensor:
    canvases = condition_canvases(to_unit_range(clips), canvases_of(config.tasks))
    return rearrange(canvases, "views canvases c t h w -> (views canvases) c t h w")


@torch.no_grad()
def _tokenize(tokenizer: VQGAN, clips: Tensor) -> Tensor:
    return tokenizer.tokenize(clips)


@torch.no_grad()
def compare(tokenizer: VQGAN, clips: Tensor, ids: Tensor) -> Comparison:
    """Holds the tokens of clips 'b 3 t h w' in [0, 1] against stored ids 'b t h w' int64."""
    latents = tokenizer.encode(clips)
    where = tokenizer.quantizer.tokenize(latents) != ids
    different = int(where.sum())
    if not different or clips.device.type in EXACT_DEVICES:
        return Comparison(0, ids.numel(), different, 0)
    shares = excess_distances(tokenizer, latents, ids, where)
    return Comparison(0, ids.numel(), different, int((shares < NEAR_TIE).sum()))


def excess_distances(tokenizer: VQGAN, latents: Tensor, ids: Tensor, where: Tensor) -> Tensor:
    """How much farther than the nearest codes the given ones are: squared distances, as shares of the squared lengths.

    Args:
        tokenizer: whose codebook it is.
        latents: 'b d t h w', of `encode`.
        ids: 'b t h w' int64.
        where: 'b t h w' bool, the n places that are looked at.

    Returns:
        'n' float32; 0 for a nearest code.
    """
    vectors, chosen = rearrange(latents.float(), "b d t h w -> b t h w d")[where], ids[where]
    distances = tokenizer.quantizer.compute_distances(vectors)
    margins = distances.gather(1, chosen[:, None])[:, 0] - distances.min(dim=1).values
    return margins / (vectors.square().sum(1) + tokenizer.quantizer.codebook.float()[chosen].square().sum(1))
