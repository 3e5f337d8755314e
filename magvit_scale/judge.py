"""Models on held-out clips -> results.json, every figure beside the baseline that it must beat: `magvit judge
CONFIG...`.

Also writes reconstructions.npz for the report. One process.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from magvit_scale.commit.condition import fixed_mask
from magvit_scale.commit.validation import draw_validation_masks, masked_cross_entropy
from magvit_scale.config import JudgeConfig, Task, dump, parse
from magvit_scale.data.clips import held_out_clips, to_frames, to_unit_range
from magvit_scale.data.sources import open_clips
from magvit_scale.data.token_shards import TokenShards
from magvit_scale.files import write_json, write_npz
from magvit_scale.metrics.reconstruction import ReconstructionScores, mean_image
from magvit_scale.metrics.tokens import codebook_use, frequency_table, table_cross_entropy, unigram_table
from magvit_scale.pipeline import MagvitPipeline
from magvit_scale.pretrained import hash_model
from magvit_scale.vqgan.autoencoder import VQGAN

PROTOCOL = "demo-claims-v1"
NUM_SHOWN_CLIPS = 16
WITHOUT_EFFECT = ("num_workers", "cache", "cache_gb")
"""Keys of the clips that change no figure."""


def main(argv: Sequence[str] | None = None) -> None:
    """Judges reconstruction, codebook, cross-entropies and generation."""
    config = parse(JudgeConfig, argv)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    dump(config, output / "config.yaml")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipeline = MagvitPipeline.from_pretrained(config.tokenizer, config.transformer, device)
    clips, labels = load_clips(config, device)
    reconstruction, shown = judge_reconstruction(config, pipeline.tokenizer, clips)
    results = {
        "protocol": describe_protocol(config, len(clips)),
        "models": {"tokenizer": hash_model(config.tokenizer), "transformer": hash_model(config.transformer)},
        "reconstruction": reconstruction,
        **judge_tokens(config, pipeline),
    }
    results["gates"] = judge(results)
    names = np.array(open_clips(config.clips).classes)
    write_npz(
        output / "reconstructions.npz", {**shown, "label": labels[:NUM_SHOWN_CLIPS].cpu().numpy(), "classes": names}
    )
    write_json(output / "results.json", results)


def load_clips(config: JudgeConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Held-out clips 'n 3 t h w' in [0, 1] and labels 'n'."""
    batches = list(held_out_clips(config.clips, num_clips=config.num_clips, batch_size=config.batch_size))
    clips = torch.cat([to_unit_range(batch["clip"]) for batch in batches])
    return clips.to(device), torch.cat([batch["label"] for batch in batches]).to(device)


def describe_protocol(config: JudgeConfig, num_clips: int) -> dict[str, Any]:
    """What a figure must carry to be compared: everything that decides it except the models."""
    facts = {
        "id": PROTOCOL,
        "clips": num_clips,
        "clip": asdict(config.clips) | dict.fromkeys(WITHOUT_EFFECT) | {"shards": open_clips(config.clips).hash},
        "seed": config.seed,
    }
    return facts | {"sha256": hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}


@torch.no_grad()
def judge_reconstruction(
    config: JudgeConfig, tokenizer: VQGAN, clips: Tensor
) -> tuple[dict[str, dict[str, float]], dict[str, np.ndarray]]:
    """Scores of the trained tokenizer, the inflated un-trained one and the clip's mean image; and clips to look at."""
    networks = {"trained": tokenizer}
    if config.inflated:
        networks["inflated"] = VQGAN.from_pretrained(config.inflated).to(clips.device)
    made = {name: torch.cat([net(part)[0].clamp(0, 1) for part in clips.split(config.batch_size)])
            for name, net in networks.items()}  # fmt: skip
    made["mean_image"] = mean_image(clips)
    results = {}
    for name, reconstruction in made.items():
        scores = ReconstructionScores()
        scores.update(clips, reconstruction)
        results[name] = scores.result()
    shown = {"original": clips, "reconstruction": made["trained"]} | {k: made[k] for k in ("inflated",) if k in made}
    return results, {name: to_frames(clip[:NUM_SHOWN_CLIPS]) for name, clip in shown.items()}


def judge_tokens(config: JudgeConfig, pipeline: MagvitPipeline) -> dict[str, Any]:
    """Codebook use, and cross-entropy of masked held-out tokens beside what frequency tables of the training set
    reach.
    """
    train, test = TokenShards.open(config.train_tokens), TokenShards.open(config.test_tokens)
    known, _ = _all_tokens(train)
    tokens, labels = _all_tokens(test)
    device = next(pipeline.transformer.parameters()).device
    z, size = tokens[:, 0], test.codebook_size
    is_masked = draw_validation_masks(len(z), z[0].numel(), config.seed)
    everything = torch.ones_like(is_masked)
    tables = {"per_position": frequency_table(known[:, 0], size), "unigram": unigram_table(known[:, 0], size)}

    def entropies(task: Task, where: Tensor) -> dict[str, float]:
        batch = (tokens.to(device), labels.to(device), task, where.to(device))
        commit = masked_cross_entropy(pipeline.transformer, *batch, test.canvases, config.batch_size)
        # The tables are asked for the tokens that this model has to predict, and no others.
        grid = where.reshape(z.shape) & ~fixed_mask(task, test.latent_shape, pipeline.transformer.config)
        return {"commit": commit} | {name: table_cross_entropy(table, z, grid) for name, table in tables.items()}

    use = codebook_use(z, size)
    return {
        "codebook": {"used": use.used, "perplexity": use.perplexity, "counts": use.counts.tolist()},
        "cross_entropy": {task: entropies(task, is_masked) for task in config.tasks},
        **({"class_conditional": entropies("CG", everything)} if "CG" in config.tasks else {}),
    }


def _all_tokens(shards: TokenShards) -> tuple[Tensor, Tensor]:
    indices = [index for index in range(shards.num_clips) for _ in range(shards.views)]
    return shards.batch(indices, list(range(shards.views)) * shards.num_clips)


def judge(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The four claims of the demo, each against a baseline that can't be fooled."""
    scores, entropies = results["reconstruction"], results["cross_entropy"]
    moving = {name: values["psnr_moving"] for name, values in scores.items()}
    worst = max(entropies, key=lambda task: entropies[task]["commit"] - entropies[task]["per_position"])
    claims = [
        ("a", "reconstruction of moving pixels beats the clip's mean image", moving, "trained", "mean_image"),
        ("b", "the trained 3D model beats the inflated un-trained one on moving pixels", moving, "trained", "inflated"),
        ("c", f"masked-token cross-entropy of every task is below the per-position table (closest: {worst})",
         entropies[worst], "commit", "per_position"),
        ("d", "class-conditional cross-entropy with all tokens masked is below the per-position table",
         results.get("class_conditional", {}), "commit", "per_position"),
    ]  # fmt: skip
    return [
        _gate(name, claim, figures[ours], figures[baseline], is_psnr=figures is moving)
        for name, claim, figures, ours, baseline in claims
        if baseline in figures
    ]


def _gate(name: str, claim: str, value: float, baseline: float, *, is_psnr: bool) -> dict[str, Any]:
    return {
        "id": name,
        "claim": claim,
        "value": value,
        "baseline": baseline,
        "unit": "dB" if is_psnr else "nats",
        "higher_is_better": is_psnr,
        "passed": value > baseline if is_psnr else value < baseline,
    }
