"""What a pipeline tells the transformer in each decoding step: task, class and condition, or, for guidance, none."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from magvit_scale.commit.condition import build_condition
from magvit_scale.commit.tasks import MASK_TOKEN, SPECS, condition_mask, task_token
from magvit_scale.commit.told import told_logits
from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import TASKS, DecodingConfig, Task
from magvit_scale.pipeline import MagvitPipeline
from tests.tiny_pipeline import FEW_STEPS, LATENT, TRANSFORMER, build, random_clip


@pytest.fixture(scope="module")
def pipeline() -> MagvitPipeline:
    return build()


def watch(pipeline: MagvitPipeline, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The sequences that the transformer sees."""
    seen: list[Tensor] = []
    answer = CommitTransformer.latent_logits

    def latent_logits(sequence: Tensor) -> Tensor:
        seen.append(sequence.clone())
        return answer(pipeline.transformer, sequence)

    monkeypatch.setattr(pipeline.transformer, "latent_logits", latent_logits)
    return seen


@pytest.mark.parametrize("task", TASKS)
def test_the_transformer_starts_from_task_class_and_canvas(
    pipeline: MagvitPipeline, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, clip, labels = watch(pipeline, monkeypatch), random_clip(), torch.tensor([2, 0])
    pipeline(task, condition=clip, label=labels, decoding=FEW_STEPS)
    assert len(seen) == 3
    shown = [16 + 2, 16 + 0] if task in ("CG", "CFP") else [16 + 3, 16 + 3]
    assert seen[0][:, 0].tolist() == [task_token(task, TRANSFORMER)] * 2
    assert seen[0][:, 1].tolist() == shown
    expected = torch.full((2, 32), MASK_TOKEN)
    if task != "CG":
        canvas = pipeline.tokenizer.tokenize(SPECS[task].fill(clip))  # type: ignore[misc]
        expected = torch.where(condition_mask(task, LATENT).flatten(), canvas.flatten(1), MASK_TOKEN)
    assert torch.equal(seen[0][:, 2:], expected)


def test_no_label_is_the_row_of_no_class(pipeline: MagvitPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch(pipeline, monkeypatch)
    pipeline("CG", num_clips=2, decoding=FEW_STEPS)
    assert seen[0][:, 1].tolist() == [16 + 3] * 2


@pytest.mark.parametrize("task", ["CG", "CFP", "OPD"])
def test_no_guidance_is_plain_decoding_with_one_pass_per_step(
    pipeline: MagvitPipeline, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tokens(guidance_scale: float) -> Tensor:
        decoding = replace(FEW_STEPS, guidance_scale=guidance_scale)
        return pipeline(task, condition=random_clip(), label=torch.tensor([0, 1]), decoding=decoding).decoded.tokens

    plain = pipeline(task, condition=random_clip(), label=torch.tensor([0, 1]), decoding=FEW_STEPS).decoded.tokens
    assert torch.equal(tokens(0.0), plain)
    seen = watch(pipeline, monkeypatch)
    tokens(0.0)
    assert len(seen) == FEW_STEPS.num_steps


def test_guidance_moves_logits_away_from_those_without_a_condition(
    pipeline: MagvitPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch(pipeline, monkeypatch)
    one_step = DecodingConfig(num_steps=1, guidance_scale=1.5)
    pipeline("CFP", condition=random_clip(), label=torch.tensor([0, 1]), decoding=one_step)
    given, free = seen
    assert given[:, :2].tolist() == [[-4, 16], [-4, 17]]
    # No class, the generation token, condition tokens hidden.
    assert free[:, :2].tolist() == [[-3, 19], [-3, 19]]
    assert (free[:, 2:] == MASK_TOKEN).all()
    # At a scale s the distribution is p(given) * (p(given) / p(free))^s, up to normalisation.
    condition = build_condition(["CFP"] * 2, torch.zeros(2, 32, dtype=torch.int64), LATENT, TRANSFORMER)
    everything = torch.ones_like(condition.where)
    told = told_logits(pipeline.transformer, "CFP", torch.tensor([0, 1]), condition, 1.5)
    guided = told(given[:, 2:], everything)
    answers = [pipeline.transformer(sequence)[:, 2:, :16] for sequence in (given, free)]
    torch.testing.assert_close(guided, 2.5 * answers[0] - 1.5 * answers[1], rtol=1e-4, atol=1e-4)


def test_guidance_hides_condition_tokens_and_not_what_was_decoded_there(
    pipeline: MagvitPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch(pipeline, monkeypatch)
    decoding = DecodingConfig(num_steps=4, guidance_scale=1.0, schedule="uniform")
    decoded = pipeline("IPC", condition=random_clip(), decoding=decoding).decoded
    condition = condition_mask("IPC", LATENT).flatten().expand(2, 32)
    for step in range(1, 4):
        given, free = seen[2 * step][:, 2:], seen[2 * step + 1][:, 2:]
        fixed = decoded.fixed_by_step[step - 1]
        assert (fixed & condition).any()
        assert torch.equal(free, torch.where(condition & ~fixed, MASK_TOKEN, given))


@pytest.mark.parametrize(("conditioning", "size"), [("canvas", 0), ("latent", 0), ("prefix", 16)])
def test_a_transformer_is_told_its_condition_as_it_was_in_training(
    conditioning: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fixed in its place (the canvas's tokens, or the clip's own), or ahead of the latents."""
    pipeline, clip = build(conditioning=conditioning, num_condition_tokens=size), random_clip()
    seen = watch(pipeline, monkeypatch)
    decoded = pipeline("OPV", condition=clip, decoding=FEW_STEPS).decoded
    shown = clip if conditioning == "latent" else SPECS["OPV"].fill(clip)  # type: ignore[misc]
    tokens, given = pipeline.tokenizer.tokenize(shown).flatten(1), condition_mask("OPV", LATENT).flatten()
    assert len(seen) == 3
    for sequence in seen:
        if conditioning == "prefix":
            assert torch.equal(sequence[:, 2:18], tokens[:, given])
            assert sequence[:, 18].tolist() == [-2] * 2
        else:
            assert torch.equal(sequence[:, 2:][:, given], tokens[:, given])
    start = torch.where(given & (conditioning != "prefix"), tokens, MASK_TOKEN)
    assert torch.equal(seen[0][:, -32:], start)
    assert seen[0][:, 0].tolist() == [-3 if conditioning == "latent" else -6] * 2
    if conditioning != "prefix":
        assert torch.equal(decoded.tokens[:, given], tokens[:, given])
