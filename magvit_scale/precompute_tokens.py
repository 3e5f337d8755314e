"""Clip shards and a tokenizer -> token shards: `magvit precompute-tokens CONFIG... tokenizer=DIR output=DIR`.

One token shard per clip shard, holding the tokens of the clip and of the tasks' condition canvases for every view.
Ranks take shards in turn; shards that exist are kept, so a killed run continues.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple
from pathlib import Path

import torch

from magvit_scale.commit.rules import canvas_rules
from magvit_scale.commit.tasks import CLIP, canvases_of
from magvit_scale.config import PrecomputeTokensConfig, Refusal, parse
from magvit_scale.data.clips import open_clips
from magvit_scale.data.token_facts import MOST_CODES, TokenFacts, token_shard_name
from magvit_scale.data.token_shards import TokenShards
from magvit_scale.data.token_writer import (
    claim_token_folder,
    is_token_shard_done,
    write_token_dataset,
    write_token_shard,
)
from magvit_scale.files import in_own_order
from magvit_scale.inference import prepare_tokenizer
from magvit_scale.pretrained import hash_model
from magvit_scale.progress import progress
from magvit_scale.tokenizing import Comparison, compare_shard, tokenize_shard
from magvit_scale.training import distributed
from magvit_scale.vqgan.autoencoder import VQGAN

CLIP_KEYS = ("split", "num_frames", "frame_stride", "sampled_frames", "size_px", "horizontal_flip")
"""Keys of a clip configuration that change the clips; the shards are named by their hash."""


def main(argv: Sequence[str] | None = None) -> None:
    """Tokenizes one split. Collective: every rank must call."""
    config = parse(PrecomputeTokensConfig, argv)
    ranks = distributed.start()
    tokenizer = prepare_tokenizer(VQGAN.from_pretrained(config.tokenizer), config.compute, ranks.device)
    facts, folder = gather_facts(config, tokenizer), Path(config.output)
    claim_token_folder(folder, facts)
    for shard in shards_in_turn(facts.num_shards, ranks, f"{folder.name} tokens"):
        path = folder / token_shard_name(shard)
        if not is_token_shard_done(path, facts):
            write_token_shard(path, facts, *tokenize_shard(config, facts, tokenizer, shard, ranks.device))
    distributed.barrier()
    if ranks.is_main:
        codebook = write_token_dataset(folder, facts)["codebook"]
        use = f"{codebook['used']} of {facts.codebook_size} codes, perplexity {codebook['perplexity']}"
        sys.stdout.write(f"{folder}: codebook use of z: {use}\n")
    distributed.barrier()
    if config.verify:
        verify(config, tokenizer, ranks)
    distributed.stop()


def shards_in_turn(num_shards: int, ranks: distributed.Ranks, label: str) -> Iterable[int]:
    """This rank's shards, under a progress bar of the main rank."""
    mine = in_own_order(range(ranks.rank, num_shards, ranks.world_size))
    return progress(mine, label, len(mine), unit="shard") if ranks.is_main else mine


def verify(config: PrecomputeTokensConfig, tokenizer: VQGAN, ranks: distributed.Ranks) -> None:
    """Compares checksums and tokenizes a share of the videos again; says the result in one line. Collective.

    Raises:
        Refusal: a shard is not as it was written, or its tokens are not those of the tokenizer.
    """
    stored, own = TokenShards.open(config.output, verify=ranks.is_main), Comparison()
    for shard in shards_in_turn(stored.num_shards, ranks, f"{stored.folder.name} verified"):
        own += compare_shard(config, tokenizer, shard, stored.tars[shard], ranks.device)
    counts = torch.tensor(astuple(own), dtype=torch.float64, device=ranks.device)
    total = Comparison(*(round(count * ranks.world_size) for count in distributed.mean_over_ranks(counts).tolist()))
    line = (
        f"{config.output}: verified {total.videos} videos, {total.tokens} tokens: {total.different} differ, "
        f"{total.near_ties} of them between codes that are equally near"
    )
    if total.different > total.near_ties:
        raise Refusal(f"{line}; delete the folder and run magvit precompute-tokens again")
    if ranks.is_main:
        sys.stdout.write(f"{line}\n")


def gather_facts(config: PrecomputeTokensConfig, tokenizer: VQGAN) -> TokenFacts:
    """What decides the tokens.

    Raises:
        Refusal: a tokenizer or values that give no token shards.
    """
    if tokenizer.config.ndim != 3:
        raise Refusal(f"{config.tokenizer}: is a {tokenizer.config.ndim}D VQGAN, expected a 3D one")
    if (size := tokenizer.config.codebook_size) > MOST_CODES:
        raise Refusal(f"{config.tokenizer}: {size} codes, expected at most {MOST_CODES}, the ids of 16 bits")
    for key, is_valid in (("views", config.views >= 1), ("batch_size", config.batch_size >= 1)):
        if not is_valid:
            raise Refusal(f"{key}={getattr(config, key)}: expected at least 1")
    if not 0 <= config.verify <= 1:
        raise Refusal(f"verify={config.verify}: expected a share of the videos, 0 to 1")
    dataset, clips = open_clips(config.clips), asdict(config.clips)
    sides = (clips["sampled_frames"] or clips["num_frames"], clips["size_px"], clips["size_px"])
    canvases = canvases_of(config.tasks)
    return TokenFacts(
        tokenizer_hash=hash_model(config.tokenizer),
        tokenizer=asdict(tokenizer.config),
        clips_hash=dataset.hash,
        clips={key: clips[key] for key in CLIP_KEYS},
        canvases=(CLIP, *canvases),
        rules=canvas_rules(canvases),
        views=config.views,
        seed=config.seed,
        latent_shape=tuple(side // factor for side, factor in zip(sides, tokenizer.downsample, strict=True)),
        codebook_size=size,
        classes=dataset.classes,
        num_shards=len(dataset.shards(config.clips.split)),
        precision=config.compute.precision,
    )
