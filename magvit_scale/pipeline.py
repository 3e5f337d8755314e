"""MagvitPipeline: tokenizer, transformer and COMMIT decoding together, from Python."""

from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from magvit_scale.commit.condition import Condition, build_condition, build_prompt
from magvit_scale.commit.decoding import Decoded, Logits, decode, draw_gumbel, guided
from magvit_scale.commit.tasks import GENERATION, SPECS
from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import DecodingConfig, Refusal, Task
from magvit_scale.vqgan.autoencoder import VQGAN


@dataclass(frozen=True)
class Generated:
    """Clips 'b 3 t h w' float32 in [0, 1], and how their tokens came about."""

    clips: Tensor
    decoded: Decoded


class MagvitPipeline:
    """Generates clips for any task.

    Args:
        tokenizer: a 3D VQGAN.
        transformer: of that tokenizer's latents; on the same device.
    """

    def __init__(self, tokenizer: VQGAN, transformer: CommitTransformer):
        if transformer.codebook_size != tokenizer.config.codebook_size:
            raise Refusal(
                f"transformer for a codebook of {transformer.codebook_size}, tokenizer has "
                f"{tokenizer.config.codebook_size}; they are not of one run"
            )
        self.tokenizer, self.transformer = tokenizer, transformer

    @classmethod
    def from_pretrained(
        cls, tokenizer: str | Path, transformer: str | Path, device: torch.device | str = "cpu"
    ) -> "MagvitPipeline":
        """Reads both export folders onto a device."""
        return cls(
            VQGAN.from_pretrained(tokenizer).to(device), CommitTransformer.from_pretrained(transformer).to(device)
        )

    @torch.no_grad()
    def __call__(
        self,
        task: Task,
        *,
        condition: Tensor | None = None,
        labels: Tensor | None = None,
        num_clips: int = 1,
        decoding: DecodingConfig | None = None,
        seed: int = 0,
    ) -> Generated:
        """Generates a batch.

        Args:
            task: its name in the paper, as `FP`.
            condition: 'b 3 t h w' float32 in [0, 1]; only what the task gives is looked at (with `latent` conditioning
                the latents it gives, of the whole clip). None for class generation.
            labels: 'b' int64 class ids; None or an unconditional task: no class.
            num_clips: how many, where there is neither condition nor labels.
            decoding: steps and temperatures.
            seed: of the sampling.

        Raises:
            Refusal: the task needs a condition and there is none.
        """
        fill = SPECS[task].fill
        if fill is not None and condition is None:
            raise Refusal(f"task {task} ({SPECS[task].title}) needs a condition clip")
        if fill is None or condition is None:
            tokens = None
        else:
            is_canvas = self.transformer.config.conditioning != "latent"
            tokens = self.tokenizer.tokenize(fill(condition) if is_canvas else condition)
        sizes = [len(given) for given in (tokens, labels) if given is not None]
        return self.generate_from_tokens(task, tokens, labels, sizes[0] if sizes else num_clips, decoding, seed)

    @torch.no_grad()
    def generate_from_tokens(
        self,
        task: Task,
        condition_tokens: Tensor | None,
        labels: Tensor | None,
        num_clips: int,
        decoding: DecodingConfig | None = None,
        seed: int = 0,
    ) -> Generated:
        """As calling the pipeline, with the condition canvas (with `latent` conditioning the clip itself) tokenized
        already ('b t h w' int64).
        """
        self._check(condition_tokens, labels if SPECS[task].is_class_conditional else None, num_clips)
        shape, device = self.transformer.latent_shape, next(self.transformer.parameters()).device
        if condition_tokens is None:
            condition_tokens = torch.zeros((num_clips, *shape), dtype=torch.int64, device=device)
        tokens, config = rearrange(condition_tokens, "b t h w -> b (t h w)"), decoding or DecodingConfig()
        condition = build_condition([task] * num_clips, tokens.to(device), shape, self.transformer.config)
        decoded = decode(
            self._logits(task, labels, condition, config.guidance_scale),
            condition.start,
            ~condition.is_fixed,
            config,
            draw_gumbel(torch.Generator(device).manual_seed(seed)),
        )
        return Generated(self.detokenize(decoded.tokens), decoded)

    @torch.no_grad()
    def detokenize(self, tokens: Tensor) -> Tensor:
        """'b n' ids -> clips 'b 3 t h w' in [0, 1]."""
        t, h, w = self.transformer.latent_shape
        return self.tokenizer.detokenize(rearrange(tokens, "b (t h w) -> b t h w", t=t, h=h, w=w))

    def _check(self, condition_tokens: Tensor | None, labels: Tensor | None, num_clips: int) -> None:
        shape, num_classes = (num_clips, *self.transformer.latent_shape), self.transformer.num_classes
        if condition_tokens is not None and tuple(condition_tokens.shape) != shape:
            raise Refusal(f"condition of {tuple(condition_tokens.shape)} latents, the transformer is for {shape}")
        if labels is not None and len(labels) != num_clips:
            raise Refusal(f"{len(labels)} labels for {num_clips} clips, expected one for each")
        if labels is not None and not ((labels >= -1) & (labels < num_classes)).all():
            raise Refusal(f"class {labels.tolist()}, expected ids in [0, {num_classes}), or -1 for none")

    def _logits(self, task: Task, labels: Tensor | None, condition: Condition, guidance_scale: float) -> Logits:
        model, b, device = self.transformer, len(condition.tokens), condition.tokens.device
        no_task, no_class = torch.full((b,), GENERATION, device=device), torch.full((b,), -1, device=device)
        shown = no_class if labels is None or not SPECS[task].is_class_conditional else labels.to(device)
        prompt = build_prompt([task] * b, shown, model.config)

        def given(latents: Tensor, unknown: Tensor) -> Tensor:
            return model.latent_logits(model.build_sequence(*prompt, latents, condition.before))

        def free(latents: Tensor, unknown: Tensor) -> Tensor:
            return model.latent_logits(model.build_sequence(no_task, no_class, latents, condition.before))

        return guided(given, free, condition.where, guidance_scale)
