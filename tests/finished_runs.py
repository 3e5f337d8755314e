"""Run folders of a tokenizer and a transformer on one small data set, as training leaves them, without any training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import (
    ClipsConfig,
    RunConfig,
    TrainCommitConfig,
    TrainVQGANConfig,
    TransformerConfig,
    VQGANLossConfig,
    dump,
)
from magvit_scale.data.shards import load_dataset
from magvit_scale.data.sources import fingerprint
from magvit_scale.data.token_facts import TokenFacts, read_dataset, token_shard_name
from magvit_scale.data.token_writer import write_token_dataset, write_token_shard
from magvit_scale.pretrained import hash_model
from magvit_scale.training.slices import write_tensors
from magvit_scale.vqgan.autoencoder import VQGAN
from tests.tiny_tokens import LATENT_SHAPE, NUM_CODES, NUM_FRAMES, SIZE_PX, write_clips, write_tokenizer

STEPS = 7


def write_runs(folder: Path) -> Path:
    """Fills vqgan/, commit/, clips/ and tokens/."""
    clips, tokenizer = write_clips(folder), write_tokenizer(folder / "vqgan" / "export")
    vqgan = VQGAN.from_pretrained(tokenizer)
    config = TrainVQGANConfig(
        run=RunConfig(folder="unused", steps=STEPS, global_batch_size=2, precision="bf16"),
        clips=ClipsConfig(shards=str(clips), num_frames=NUM_FRAMES, size_px=SIZE_PX),
        model=vqgan.config,
        loss=VQGANLossConfig(perceptual="random"),
    )
    _write_run(folder / "vqgan", config, "average", vqgan.state_dict(), fingerprint(config.clips))
    _write_tokens(folder)
    _write_commit(folder)
    return folder


def _write_tokens(folder: Path) -> None:
    dataset = load_dataset(folder / "clips")
    facts = TokenFacts(
        tokenizer_hash=hash_model(folder / "vqgan" / "export"), tokenizer={}, clips_hash=dataset.hash,
        clips={"split": "train", "frame_stride": 1}, canvases=("z",), rules={}, views=1, seed=0,
        latent_shape=LATENT_SHAPE, codebook_size=NUM_CODES, classes=dataset.classes, num_shards=1,
    )  # fmt: skip
    tokens, labels = np.zeros((2, *facts.clip_shape), np.uint16), np.arange(2)
    write_token_shard(folder / "tokens" / token_shard_name(0), facts, tokens, labels, ["a", "b"])
    write_token_dataset(folder / "tokens", facts)


def _write_commit(folder: Path) -> None:
    torch.manual_seed(1)
    model = CommitTransformer(
        TransformerConfig(
            num_layers=1, hidden_size=8, mlp_dim=8, num_heads=2, latent_shape=LATENT_SHAPE, codebook_size=NUM_CODES,
            num_classes=8,
        )
    )  # fmt: skip
    model.save_pretrained(folder / "commit" / "export")
    config = TrainCommitConfig(
        run=RunConfig(folder="unused", steps=STEPS, global_batch_size=4), tokens=str(folder / "tokens"),
        tokenizer="unused", model=model.config, tasks=("FP", "CG", "CG"),
    )  # fmt: skip
    data = read_dataset(folder / "tokens")["hash"]
    _write_run(folder / "commit", config, "transformer/master", model.state_dict(), data)


def _write_run(run: Path, config: Any, prefix: str, state: dict[str, torch.Tensor], data: str) -> None:
    checkpoint = run / "checkpoints" / f"step_{STEPS:08d}"
    checkpoint.mkdir(parents=True)
    write_tensors(
        {f"{prefix}/{name}@0": t.flatten() for name, t in state.items()}, checkpoint / "rank_00000.safetensors"
    )
    (checkpoint / "state.json").write_text(json.dumps({"step": STEPS, "data": data, "world_size": 3}))
    sizes = {path.name: path.stat().st_size for path in checkpoint.iterdir()}
    (checkpoint / "COMPLETE").write_text(json.dumps({"files": sizes}))
    dump(config, run / "config.yaml")
    lines = [{"step": step, "time": 0.0, "loss/total": 9.0 - step, "perf/step_s": 1.0} for step in (1, STEPS)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "env.json").write_text(json.dumps({"host": "secret-host", "torch": "2.15.0"}))
