"""MagvitPipeline: tokenizer, transformer and COMMIT decoding together, from Python."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from magvit_scale.commit.condition import build_condition
from magvit_scale.commit.decoding import Decoded, decode, draw_noise
from magvit_scale.commit.names import Label, Seed, count_clips, labels_of, refuse_other_range, seeds_of, task_named
from magvit_scale.commit.tasks import SPECS, num_first_frames
from magvit_scale.commit.told import told_logits
from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import TASKS, ComputeConfig, DecodingConfig, Refusal, Task
from magvit_scale.inference import prepare_tokenizer, prepare_transformer
from magvit_scale.long_video import cross_fade, lengthened, slide, window_seed, window_starts
from magvit_scale.model_index import ModelIndex, read_index, write_index
from magvit_scale.pretrained import find_folder, refuse_other_tokenizer
from magvit_scale.vqgan.autoencoder import VQGAN

DEFAULT_FPS = 8.0


@dataclass(frozen=True)
class Generated:
    """Clips 'b 3 t h w' float32 in [0, 1], and how the tokens of their windows came about: one, but for long videos."""

    clips: Tensor
    windows: tuple[Decoded, ...]

    @property
    def decoded(self) -> Decoded:
        """Of the first window."""
        return self.windows[0]


class MagvitPipeline:
    """Generates clips for any task.

    Args:
        tokenizer: a 3D VQGAN.
        transformer: of that tokenizer's latents; on the same device.
        classes: names by class id; empty where labels are numbers only.
        fps: frames per second of its clips.
        is_compiled: whether what decoding does between two calls of the transformer is compiled, see `decode`.
    """

    def __init__(
        self,
        tokenizer: VQGAN,
        transformer: CommitTransformer,
        classes: Sequence[str] = (),
        fps: float = DEFAULT_FPS,
        is_compiled: bool = False,
    ) -> None:
        if transformer.codebook_size != tokenizer.config.codebook_size:
            raise Refusal(
                f"transformer for a codebook of {transformer.codebook_size}, tokenizer has "
                f"{tokenizer.config.codebook_size}; they are not of one run"
            )
        self.tokenizer, self.transformer = tokenizer, transformer
        self.classes, self.fps, self.is_compiled = tuple(classes), fps, is_compiled

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        transformer: str | Path | None = None,
        device: torch.device | str = "cpu",
        compute: ComputeConfig = ComputeConfig(),
    ) -> "MagvitPipeline":
        """Reads a pipeline folder, or a tokenizer's and a transformer's export folders, onto a device; each a path or
        a name of the Hugging Face hub, see `find_folder`. `compute` says in which numbers they compute there.

        Raises:
            Refusal: a folder is none of these, or the tokenizer is not the transformer's.
        """
        index, tokenizer = ModelIndex(), folder
        if transformer is None:
            whole = find_folder(folder)
            index = read_index(whole)
            tokenizer, transformer = whole / index.tokenizer, whole / index.transformer
        models = VQGAN.from_pretrained(tokenizer), CommitTransformer.from_pretrained(transformer)
        refuse_other_tokenizer(tokenizer, models[1].config.tokenizer_hash)
        place = torch.device(device)
        ready = prepare_tokenizer(models[0], compute, place), prepare_transformer(models[1], compute, place)
        return cls(*ready, index.classes, index.fps or DEFAULT_FPS, compute.compile)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes transformer/, tokenizer/ and then model_index.json.

        Raises:
            Refusal: the transformer is in 16 bits, see `from_pretrained`; nothing is written.
        """
        index = ModelIndex(classes=self.classes, fps=self.fps)
        self.transformer.save_pretrained(Path(folder, index.transformer))
        self.tokenizer.save_pretrained(Path(folder, index.tokenizer))
        write_index(folder, index)

    @property
    def clip_shape(self) -> tuple[int, int, int]:
        """(t, h, w) of the clips that the models are for."""
        t, h, w = (s * f for s, f in zip(self.transformer.latent_shape, self.tokenizer.downsample, strict=True))
        return t, h, w

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return next(self.transformer.parameters()).device

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Tasks that the transformer was trained for; the paper's ten where its config names none."""
        return self.transformer.config.tasks or TASKS

    def trained_task(self, name: str) -> Task:
        """The task of this name, see `task_named`.

        Raises:
            Refusal: there is none, or the transformer was trained for others. One whose config names no tasks takes
                all.
        """
        task, trained = task_named(name), self.transformer.config.tasks
        if trained is not None and task not in trained:
            raise Refusal(
                f"task {task} ({SPECS[task].title}): the transformer was trained for {', '.join(trained)}; take one of "
                "these, or another transformer"
            )
        return task

    @torch.no_grad()
    def __call__(
        self,
        task: str,
        *,
        condition: Tensor | None = None,
        label: Label | None = None,
        num_clips: int = 1,
        num_steps: int | None = None,
        decoding: DecodingConfig | None = None,
        seed: Seed = 0,
    ) -> Generated:
        """Generates a batch.

        Args:
            task: its name in the paper, as `FP`, or in words, as `frame_prediction`.
            condition: 'b 3 t h w' or '3 t h w' float32 in [0, 1]; only what the task gives is looked at (with `latent`
                conditioning the latents it gives, of the whole clip). None for class generation.
            label: a class id or name for all clips, one for each, or int64 'b'. None, or a task without: no class.
            num_clips: how many, where neither condition, labels nor seeds say so.
            num_steps: in place of decoding.num_steps.
            decoding: steps and temperatures.
            seed: of the sampling. A clip's noise is a function of its own seed: clip i has seed + i, or seed[i].

        Raises:
            Refusal: a task, class or condition that the models are not for, or numbers of clips that disagree.
        """
        name = self.trained_task(task)
        tokens, fill = None, SPECS[name].fill
        if fill is not None:
            if condition is None:
                raise Refusal(f"task {name} ({SPECS[name].title}) needs a condition clip")
            clip = self._clip(condition)
            tokens = self.tokenizer.tokenize(clip if self.transformer.config.conditioning == "latent" else fill(clip))
        decoding = decoding or DecodingConfig()
        if num_steps is not None:
            decoding = replace(decoding, num_steps=num_steps)
        count = len(tokens) if tokens is not None else count_clips(label, seed) or num_clips
        return self.generate_from_tokens(name, tokens, label, count, decoding, seed)

    @torch.no_grad()
    def generate_from_tokens(
        self,
        task: str,
        condition_tokens: Tensor | None,
        label: Label | None,
        num_clips: int,
        decoding: DecodingConfig | None = None,
        seed: Seed = 0,
    ) -> Generated:
        """As calling the pipeline, with the condition canvas (with `latent` conditioning the clip itself) tokenized
        already ('b t h w' int64).
        """
        name, model, device = self.trained_task(task), self.transformer, self.device
        shape, shown = model.latent_shape, label if SPECS[name].is_class_conditional else None
        labels = labels_of(shown, self.classes, model.num_classes, num_clips).to(device)
        if condition_tokens is None:
            condition_tokens = torch.zeros((num_clips, *shape), dtype=torch.int64)
        if tuple(condition_tokens.shape) != (num_clips, *shape):
            raise Refusal(
                f"condition of {tuple(condition_tokens.shape)} latents, the transformer is for {(num_clips, *shape)}"
            )
        tokens, config = rearrange(condition_tokens, "b t h w -> b (t h w)").to(device), decoding or DecodingConfig()
        condition = build_condition([name] * num_clips, tokens, shape, model.config)
        logits = told_logits(model, name, labels, condition, config.guidance_scale)
        noise = draw_noise([torch.Generator(device).manual_seed(own) for own in seeds_of(seed, num_clips)])
        decoded = decode(logits, condition.start, ~condition.is_fixed, config, noise, self.is_compiled)
        return Generated(self.detokenize(decoded.tokens), (decoded,))

    def extend(
        self,
        task: str,
        *,
        condition: Tensor,
        num_frames: int,
        label: Label | None = None,
        num_steps: int | None = None,
        decoding: DecodingConfig | None = None,
        seed: Seed = 0,
    ) -> Generated:
        """Predicts a video of any length: the last frames of each window are the condition of the next.

        Args:
            task: `FP`, `CFP` or `FP5`.
            condition: 'b 3 t h w' or '3 t h w', of any length; only its first frame (`FP5`: five) is looked at.
            num_frames: of the video.
            label: as in calling the pipeline; it holds for the whole video.
            num_steps: in place of decoding.num_steps.
            decoding: steps and temperatures.
            seed: as in calling the pipeline; see also `window_seed`.
        """
        condition, num_given = _batched(condition), num_first_frames(self.trained_task(task))
        if condition.shape[2] < num_given:
            raise Refusal(f"condition of {condition.shape[2]} frames, task {task} starts from {num_given}")
        if num_frames < 1:
            raise Refusal(f"num_frames={num_frames}: expected at least 1")
        windows, seeds = list[Generated](), seeds_of(seed, len(condition))

        def predict(given: Tensor, window: int) -> Tensor:
            clip, own = lengthened(given, self.clip_shape[0]), [window_seed(seed, window) for seed in seeds]
            windows.append(self(task, condition=clip, label=label, num_steps=num_steps, decoding=decoding, seed=own))
            return windows[-1].clips

        video = slide(condition, num_given, num_frames, predict)
        return Generated(video, tuple(made.decoded for made in windows))

    def windows(
        self,
        task: str,
        *,
        condition: Tensor,
        overlap_frames: int = 0,
        label: Label | None = None,
        num_steps: int | None = None,
        decoding: DecodingConfig | None = None,
        seed: Seed = 0,
    ) -> Generated:
        """Generates for a condition longer than a clip, window by window; see `cross_fade` for frames that they share.

        Args:
            task: any with a condition.
            condition: 'b 3 t h w' or '3 t h w', at least as long as a clip.
            overlap_frames: that neighbouring windows share.
            label: as in calling the pipeline.
            num_steps: in place of decoding.num_steps.
            decoding: steps and temperatures.
            seed: as in calling the pipeline; see also `window_seed`.
        """
        if SPECS[name := self.trained_task(task)].fill is None:
            raise Refusal(f"task {name} ({SPECS[name].title}) has no condition and makes clips of one length only")
        made, seeds = list[Generated](), seeds_of(seed, len(_batched(condition)))

        def generate(clip: Tensor) -> Tensor:
            own = [window_seed(seed, len(made)) for seed in seeds]
            made.append(self(task, condition=clip, label=label, num_steps=num_steps, decoding=decoding, seed=own))
            return made[-1].clips

        video = self._by_windows(condition, overlap_frames, generate)
        return Generated(video, tuple(window.decoded for window in made))

    @torch.no_grad()
    def reconstruct(self, clip: Tensor, overlap_frames: int = 0) -> Tensor:
        """Through the tokens and back: 'b 3 t h w' or '3 t h w', at least as long as a clip -> 'b 3 t h w' in [0, 1];
        longer ones by windows, see `windows`.
        """
        return self._by_windows(
            clip, overlap_frames, lambda window: self.tokenizer.detokenize(self.tokenizer.tokenize(self._clip(window)))
        )

    def _by_windows(self, video: Tensor, overlap_frames: int, change: Callable[[Tensor], Tensor]) -> Tensor:
        video, length = _batched(video), self.clip_shape[0]
        starts = window_starts(video.shape[2], length, overlap_frames)
        return cross_fade([change(video[:, :, start : start + length]) for start in starts], starts)

    def _clip(self, condition: Tensor) -> Tensor:
        """A condition as 'b 3 t h w' on the models' device, checked."""
        clip, shape = _batched(condition), (3, *self.clip_shape)
        if tuple(clip.shape[1:]) != shape or not clip.is_floating_point():
            raise Refusal(
                f"condition of {clip.dtype} (c, t, h, w) = {tuple(clip.shape[1:])}, the models are for float "
                f"{shape} in [0, 1]"
            )
        refuse_other_range(clip)
        return clip.to(self.device)

    def trajectory(self, decoded: Decoded, row: int = 0) -> tuple[Tensor, Tensor]:
        """How a clip of a batch came about: itself after each of k decoding steps, 'k 3 t h w' in [0, 1], and which
        latents no later step samples again, bool 'k t h w'.
        """
        t, h, w = self.transformer.latent_shape
        fixed = rearrange(decoded.fixed_by_step[:, row], "k (t h w) -> k t h w", t=t, h=h, w=w)
        return self.detokenize(decoded.tokens_by_step[:, row]), fixed

    @torch.no_grad()
    def detokenize(self, tokens: Tensor) -> Tensor:
        """'b n' ids -> clips 'b 3 t h w' in [0, 1]."""
        t, h, w = self.transformer.latent_shape
        return self.tokenizer.detokenize(rearrange(tokens, "b (t h w) -> b t h w", t=t, h=h, w=w))


def _batched(clip: Tensor) -> Tensor:
    if clip.ndim not in (4, 5):
        raise Refusal(f"clip of shape {tuple(clip.shape)}, expected 'b 3 t h w' or '3 t h w'")
    return clip if clip.ndim == 5 else clip[None]
