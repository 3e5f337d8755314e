"""Clip shards and a tokenizer -> token shards: `magvit precompute-tokens CONFIG... tokenizer=DIR output=DIR`.

One token shard per clip shard, holding the tokens of the clip and of the tasks' condition canvases for every view.
Ranks take shards in turn; shards that exist are kept, so a killed run continues.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from magvit_scale.commit.tasks import CLIP, canvases_of, condition_canvases
from magvit_scale.config import PrecomputeTokensConfig, Refusal, parse
from magvit_scale.data.clips import to_unit_range, views
from magvit_scale.data.shards import Dataset, load_dataset
from magvit_scale.data.token_shards import (
    is_token_shard_done,
    token_shard_path,
    write_token_dataset,
    write_token_shard,
)
from magvit_scale.files import write_json
from magvit_scale.pretrained import hash_model
from magvit_scale.progress import progress
from magvit_scale.training import distributed
from magvit_scale.vqgan.autoencoder import VQGAN


def main(argv: Sequence[str] | None = None) -> None:
    """Tokenizes one split. Collective: every rank must call."""
    config = parse(PrecomputeTokensConfig, argv)
    ranks = distributed.start()
    tokenizer = VQGAN.from_pretrained(config.tokenizer).to(ranks.device)
    if tokenizer.config.ndim != 3:
        raise Refusal(f"{config.tokenizer}: is a {tokenizer.config.ndim}D VQGAN, expected a 3D one")
    dataset, folder = load_dataset(config.clips.shards), Path(config.output)
    claim(config, dataset, ranks.is_main)
    mine = range(ranks.rank, len(dataset.shards(config.clips.split)), ranks.world_size)
    for shard in progress(mine, f"{folder.name} tokens", len(mine), unit="shard") if ranks.is_main else mine:
        path = token_shard_path(folder, shard)
        if not is_token_shard_done(path):
            write_token_shard(path, *tokenize_shard(config, tokenizer, shard, ranks.device))
    distributed.barrier()
    if ranks.is_main:
        finish(config, tokenizer, dataset)
    distributed.barrier()
    distributed.stop()


def claim(config: PrecomputeTokensConfig, dataset: Dataset, is_main: bool) -> None:
    """Notes in the folder what its tokens are of, and refuses a folder with tokens of something else."""
    path = Path(config.output) / "source.json"
    cut = {key: getattr(config.clips, key) for key in ("split", "num_frames", "frame_stride", "horizontal_flip")}
    facts = {"tokenizer": hash_model(config.tokenizer), "clips": dataset.hash, "views": config.views, **cut}
    wanted = facts | {"seed": config.seed, "canvases": [CLIP, *canvases_of(config.tasks)]}
    if path.is_file() and (found := json.loads(path.read_text())) != wanted:
        key = next(key for key in wanted if found.get(key) != wanted[key])
        raise Refusal(
            f"{path} has {key}={found.get(key)}, this run {key}={wanted[key]}; give another output or delete it"
        )
    if is_main:
        write_json(path, wanted)


@torch.no_grad()
def tokenize_shard(
    config: PrecomputeTokensConfig, tokenizer: VQGAN, shard: int, device: torch.device
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Tokens of one clip shard: uint16 'n views canvases t h w', labels int64 'n', keys."""
    tokens: list[Tensor] = []
    labels: list[int] = []
    keys: list[str] = []
    for sample in views(config.clips, views=config.views, seed=config.seed, shard=shard):
        canvases = condition_canvases(to_unit_range(sample["clip"].to(device)), canvases_of(config.tasks))
        flat = rearrange(canvases, "views canvases c t h w -> (views canvases) c t h w")
        ids = torch.cat([tokenizer.tokenize(part) for part in flat.split(config.batch_size)])
        tokens.append(rearrange(ids, "(views canvases) t h w -> views canvases t h w", views=config.views))
        labels.append(int(sample["label"]))
        keys.append(sample["key"])
    return torch.stack(tokens).cpu().numpy().astype(np.uint16), np.array(labels, np.int64), keys


def finish(config: PrecomputeTokensConfig, tokenizer: VQGAN, dataset: Dataset) -> None:
    """Writes dataset.json, which makes the token shards readable. Main rank only."""
    clip_shape = (config.clips.num_frames, config.clips.size_px, config.clips.size_px)
    write_token_dataset(
        Path(config.output),
        canvases=(CLIP, *canvases_of(config.tasks)),
        latent_shape=tuple(side // factor for side, factor in zip(clip_shape, tokenizer.downsample, strict=True)),
        codebook_size=tokenizer.config.codebook_size,
        classes=dataset.classes,
        tokenizer_hash=hash_model(config.tokenizer),
        clips_hash=dataset.hash,
        split=config.clips.split,
    )
