"""Training runs so small that a start of two ranks takes seconds, with everything on that has a state."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests import tiny_tokens
from tests.integration.nursery import Nursery

ZERO = (0, 1, 2, 3)
ADVERSARIAL_START = 3
RUN = ["run.log_every=1", "run.checkpoint_every=2", "run.dead_after_s=20", "run.hang_after_s=60"]
OPTIM = ["optim.learning_rate=1e-3", "optim.warmup_steps=2", "optim.gradient_clipping=1.0"]


@dataclass(frozen=True)
class TinyRuns:
    """Arguments of both programs over the data of one folder."""

    folder: Path

    def deepspeed(self, stage: int) -> str:
        """DeepSpeed's file of a stage; at stage 3 every parameter is partitioned."""
        return str(self.folder / f"zero{stage}.json")

    def vqgan(self, folder: Path, stage: int, accumulation: int = 1, steps: int = 6) -> list[str]:
        """GAN, r1, LeCam, average, revived codes, loader workers; r1 needs a discriminator at stage 2 at most."""
        model = ["ndim=3", "base_channels=4", "channel_multipliers=[1,1]", "num_res_blocks=1", "embedding_dim=4",
                 "temporal_downsample=[true]", "codebook_size=32", "num_groups=2"]  # fmt: skip
        loss = ["loss.perceptual=none", f"loss.adversarial_start={ADVERSARIAL_START}", "loss.ema_decay=0.5",
                "loss.lecam_weight=0.1"]  # fmt: skip
        judge = ["discriminator.base_channels=4", "discriminator.channel_multipliers=[2]",
                 f"discriminator_deepspeed={self.deepspeed(min(stage, 2))}"]  # fmt: skip
        use = ["codebook_use.window=2", "codebook_use.dead_after=3", "codebook_use.revive_every=2"]
        clips = [f"clips.shards={self.folder}/clips", "clips.num_frames=4", "clips.size_px=16", "clips.num_workers=1"]
        run = [*self._run(folder, stage, accumulation, steps), "run.sample_every=4"]
        return ["train-vqgan", *run, *loss, *judge, *use, *clips, *(f"model.{item}" for item in model)]  # fmt: skip

    def commit(self, folder: Path, stage: int, accumulation: int = 1, steps: int = 6) -> list[str]:
        """With dropout, the one draw that torch makes."""
        model = ["num_layers=1", "hidden_size=8", "mlp_dim=16", "num_heads=2", "dropout=0.1"]
        data = [f"tokens={self.folder}/tokens", f"tokenizer={self.folder}/tokenizer", "tasks=[FP,OPC]"]
        return ["train-commit", *self._run(folder, stage, accumulation, steps), "run.sample_every=0", *data,
                *(f"model.{item}" for item in model)]  # fmt: skip

    def of(self, program: str, folder: Path, stage: int, accumulation: int = 1, steps: int = 6) -> list[str]:
        """Of `vqgan` or `commit`."""
        return {"vqgan": self.vqgan, "commit": self.commit}[program](folder, stage, accumulation, steps)

    def _run(self, folder: Path, stage: int, accumulation: int, steps: int) -> Sequence[str]:
        return [f"run.folder={folder}", f"run.steps={steps}", "run.global_batch_size=4", *RUN, *OPTIM,
                f"run.gradient_accumulation={accumulation}", f"run.deepspeed={self.deepspeed(stage)}"]  # fmt: skip


def write_data(folder: Path, nursery: Nursery) -> TinyRuns:
    """Clip shards, a tokenizer, token shards and DeepSpeed's files."""
    tokenizer = tiny_tokens.write_tokenizer(folder / "tokenizer")
    clips = tiny_tokens.write_clips(folder)
    nursery.succeed(["precompute-tokens", *tiny_tokens.arguments(clips, tokenizer, folder / "tokens")], 1)
    for stage in ZERO:
        zero = {"stage": stage} | ({"stage3_param_persistence_threshold": 0} if stage == 3 else {})
        (folder / f"zero{stage}.json").write_text(json.dumps({"zero_optimization": zero}))
    return TinyRuns(folder)
