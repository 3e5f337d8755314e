"""Clip shards and a tokenizer so small that tokenizing all of them takes a moment."""

from pathlib import Path

import torch

from data_prep import list_videos, moving_shapes, write_shards
from magvit_scale.config import VQGANConfig
from magvit_scale.vqgan.autoencoder import VQGAN

SIZE_PX, NUM_FRAMES, LATENT_SHAPE, NUM_CODES = 16, 4, (2, 8, 8), 32
NUM_VIDEOS, NUM_SHARDS = 8, 4


def write_clips(folder: Path) -> Path:
    """Eight videos of split train in four shards, and as many of split test."""
    moving_shapes.main([f"output={folder / 'videos'}", "videos_per_class=2", "num_frames=8", f"size_px={SIZE_PX}"])
    listing = [f"videos={folder / 'videos'}", f"output={folder}", "min_frames=4"]
    list_videos.main([*listing, "num_workers=1"])
    source = [f"manifest={folder / 'manifest.jsonl'}", f"output={folder / 'clips'}", f"size_px={SIZE_PX}"]
    write_shards.main([*source, "encoding=raw", "videos_per_shard=2", "num_workers=1"])
    return folder / "clips"


def write_tokenizer(folder: Path, seed: int = 0, codebook_size: int = NUM_CODES) -> Path:
    """An untrained 3D VQGAN that halves every side."""
    torch.manual_seed(seed)
    config = VQGANConfig(
        ndim=3, base_channels=4, channel_multipliers=(1, 1), num_res_blocks=1, temporal_downsample=(True,),
        embedding_dim=4, codebook_size=codebook_size, num_groups=2,
    )  # fmt: skip
    VQGAN(config).save_pretrained(folder)
    return folder


def arguments(clips: Path, tokenizer: Path, output: Path, *more: str) -> list[str]:
    """What `magvit precompute-tokens` is told."""
    cut = [f"clips.num_frames={NUM_FRAMES}", f"clips.size_px={SIZE_PX}", "clips.num_workers=0"]
    return [f"clips.shards={clips}", f"tokenizer={tokenizer}", f"output={output}", "views=2", "tasks=[FP,OPC]",
            *cut, *more]  # fmt: skip
