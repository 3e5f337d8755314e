"""MagvitPipeline on tiny models: what it refuses, what it looks at, and that a seed is a clip."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from magvit_scale.commit.tasks import SPECS, condition_mask
from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import TASKS, DecodingConfig, Refusal, Task
from magvit_scale.pipeline import MagvitPipeline
from magvit_scale.pretrained import hash_model
from magvit_scale.vqgan.autoencoder import VQGAN
from tests.tiny_pipeline import CLIP, FEW_STEPS, TOKENIZER, TRANSFORMER, build, random_clip


@pytest.fixture(scope="module")
def pipeline() -> MagvitPipeline:
    return build()


def test_a_tokenizer_whose_tokens_the_transformer_did_not_learn_is_refused(tmp_path: Path) -> None:
    """Of equal sizes, so that nothing else would tell."""
    build().tokenizer.save_pretrained(tmp_path / "learnt")
    learnt = hash_model(tmp_path / "learnt")
    build(tokenizer_hash=learnt).save_pretrained(tmp_path / "whole")
    assert MagvitPipeline.from_pretrained(tmp_path / "whole").transformer.config.tokenizer_hash == learnt
    VQGAN(TOKENIZER).save_pretrained(tmp_path / "other")
    with pytest.raises(Refusal, match=f"weights are {hash_model(tmp_path / 'other')}, .* on tokens of {learnt}; give"):
        MagvitPipeline.from_pretrained(tmp_path / "other", tmp_path / "whole" / "transformer")


def test_a_condition_that_is_not_in_the_unit_interval_is_refused(pipeline: MagvitPipeline) -> None:
    """Frames in [0, 255] and NaN have tokens too, but of nothing."""
    with pytest.raises(Refusal, match=r"values from \S+ to 25\S+, expected \[0, 1\]; divide uint8 frames by 255"):
        pipeline("FP", condition=random_clip() * 255)
    with pytest.raises(Refusal, match="values from nan to nan"):
        pipeline.reconstruct(random_clip() * torch.nan)
    pipeline("FP", condition=random_clip() * 1.001, decoding=FEW_STEPS)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_gives_clips_in_the_unit_interval(pipeline: MagvitPipeline, task: Task) -> None:
    generated = pipeline(task, condition=random_clip(), label=torch.tensor([0, 2]), decoding=FEW_STEPS)
    assert generated.clips.shape == (2, 3, *CLIP)
    assert generated.clips.dtype == torch.float32
    assert generated.clips.min() >= 0
    assert generated.clips.max() <= 1
    assert torch.equal(generated.clips, pipeline.detokenize(generated.decoded.tokens))
    assert not generated.clips.requires_grad


@pytest.mark.parametrize("task", [task for task in TASKS if task != "CG"])
def test_a_missing_condition_is_refused(pipeline: MagvitPipeline, task: Task) -> None:
    with pytest.raises(Refusal, match=f"task {task} .*needs a condition") as refusal:
        pipeline(task, label=torch.tensor([0]))
    assert "\n" not in str(refusal.value)


def test_models_of_two_codebooks_are_refused(pipeline: MagvitPipeline) -> None:
    with pytest.raises(Refusal, match="codebook of 8, tokenizer has 16"):
        MagvitPipeline(pipeline.tokenizer, CommitTransformer(replace(TRANSFORMER, codebook_size=8)))


@pytest.mark.parametrize("task", ["FP", "CG"])
def test_the_same_seed_is_the_same_clip(pipeline: MagvitPipeline, task: Task) -> None:
    def generate(seed: int) -> Tensor:
        return pipeline(task, condition=random_clip(), label=torch.tensor([1, 1]), seed=seed).clips

    first = generate(5)
    torch.manual_seed(11)
    torch.rand(3)
    assert torch.equal(generate(5), first)
    assert not torch.equal(generate(6), first)


def test_the_number_of_clips_is_that_of_condition_or_labels(pipeline: MagvitPipeline) -> None:
    assert len(pipeline("FP", condition=random_clip(3), decoding=FEW_STEPS).clips) == 3
    assert len(pipeline("CG", label=torch.tensor([0, 1]), decoding=FEW_STEPS).clips) == 2
    assert len(pipeline("CG", num_clips=4, decoding=FEW_STEPS).clips) == 4


@pytest.mark.parametrize("task", [task for task in TASKS if task != "CG"])
def test_only_given_pixels_are_looked_at(pipeline: MagvitPipeline, task: Task) -> None:
    clip = random_clip()
    hidden = ~condition_mask(task, CLIP).expand_as(clip)
    first, second = (
        pipeline(task, condition=condition, decoding=FEW_STEPS).decoded.tokens
        for condition in (clip, torch.where(hidden, 1 - clip, clip))
    )
    assert torch.equal(first, second)


def test_canvas_tokens_can_be_given_directly(pipeline: MagvitPipeline) -> None:
    clip = random_clip()
    canvas = pipeline.tokenizer.tokenize(SPECS["OPV"].fill(clip))  # type: ignore[misc]
    direct = pipeline.generate_from_tokens("OPV", canvas, None, 2, FEW_STEPS, seed=3)
    assert torch.equal(direct.clips, pipeline("OPV", condition=clip, decoding=FEW_STEPS, seed=3).clips)


def test_a_saved_pipeline_generates_the_same(pipeline: MagvitPipeline, tmp_path) -> None:
    pipeline.tokenizer.save_pretrained(tmp_path / "tokenizer")
    pipeline.transformer.save_pretrained(tmp_path / "transformer")
    loaded = MagvitPipeline.from_pretrained(tmp_path / "tokenizer", tmp_path / "transformer")
    first, second = (p("FI", condition=random_clip(), decoding=FEW_STEPS).clips for p in (pipeline, loaded))
    assert torch.equal(first, second)


def test_how_a_condition_is_told_is_saved_with_the_transformer(tmp_path) -> None:
    saved = build(conditioning="prefix", num_condition_tokens=8, dynamic_condition="paper").transformer
    saved.save_pretrained(tmp_path)
    assert CommitTransformer.from_pretrained(tmp_path).config == saved.config


@pytest.mark.parametrize("label", [3, 10, 19, 1000])
def test_a_class_that_the_model_does_not_know_is_refused(pipeline: MagvitPipeline, label: int) -> None:
    with pytest.raises(Refusal, match=rf"class \[{label}\], expected ids in \[0, 3\)") as refusal:
        pipeline("CG", label=torch.tensor([label]), decoding=FEW_STEPS)
    assert "\n" not in str(refusal.value)


def test_a_condition_of_another_size_is_refused(pipeline: MagvitPipeline) -> None:
    for shape in ((3, 4, 32, 32), (3, 8, 16, 16), (1, 4, 16, 16)):
        with pytest.raises(Refusal, match=rf"{re.escape(str(shape))}, .*{re.escape(str((3, *CLIP)))}"):
            pipeline("FP", condition=torch.rand(1, *shape), decoding=FEW_STEPS)
    with pytest.raises(Refusal, match=r"torch.uint8 .*float .* in \[0, 1\]"):
        pipeline("FP", condition=torch.zeros(3, *CLIP, dtype=torch.uint8))
    with pytest.raises(Refusal, match=r"\(1, 2, 8, 8\).*\(1, 2, 4, 4\)"):
        pipeline.generate_from_tokens("FP", torch.zeros(1, 2, 8, 8, dtype=torch.int64), None, 1)


def test_labels_of_another_number_are_refused(pipeline: MagvitPipeline) -> None:
    with pytest.raises(Refusal, match="3 labels for 2 clips"):
        pipeline("CFP", condition=random_clip(2), label=torch.tensor([0, 1, 2]), decoding=FEW_STEPS)


def test_five_frames_are_given_to_predict_the_rest() -> None:
    pipeline = build(latent_shape=(4, 4, 4))
    clip = torch.rand(1, 3, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    other = torch.cat([clip[:, :, :5], 1 - clip[:, :, 5:]], dim=2)
    first, second = (pipeline("FP5", condition=c, decoding=FEW_STEPS).decoded.tokens for c in (clip, other))
    assert torch.equal(first, second)


def tokens_of(pipeline: MagvitPipeline, task: str, **options: Any) -> Tensor:
    return pipeline(task, decoding=FEW_STEPS, **options).decoded.tokens


@pytest.mark.parametrize("task", ["CG", "CFP", "OPD"])
def test_a_seed_is_a_clip_in_any_batch_and_at_any_place(pipeline: MagvitPipeline, task: Task) -> None:
    clip, labels = random_clip(3), torch.tensor([2, 0, 1])
    together = tokens_of(pipeline, task, condition=clip, label=labels, seed=5)
    for place in range(3):
        alone = {"condition": clip[place], "label": int(labels[place]), "seed": 5 + place}
        assert torch.equal(tokens_of(pipeline, task, **alone)[0], together[place])
    turned = tokens_of(pipeline, task, condition=clip.flip(0), label=labels.flip(0), seed=[7, 6, 5])
    assert torch.equal(turned.flip(0), together)


def test_the_same_seed_twice_is_the_same_clip_twice(pipeline: MagvitPipeline) -> None:
    found = tokens_of(pipeline, "CG", label=1, seed=(3, 4, 3))
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
    with pytest.raises(Refusal, match="3 seeds for 2 clips"):
        tokens_of(pipeline, "CG", label=[0, 1], seed=(3, 4, 3))


def test_tasks_and_classes_go_by_name(pipeline: MagvitPipeline) -> None:
    named = MagvitPipeline(pipeline.tokenizer, pipeline.transformer, ["Archery", "Bowling", "Crawling"])
    expected = tokens_of(pipeline, "CG", label=torch.tensor([2, 2]))
    assert torch.equal(tokens_of(named, "class_conditional_generation", label="Crawling", num_clips=2), expected)
    assert torch.equal(tokens_of(named, "cg", label=["Crawling", 2]), expected)
    with pytest.raises(Refusal, match="'Crawlin'; the nearest is 'Crawling'"):
        tokens_of(named, "CG", label="Crawlin")
    # A task without a class has nothing to look up.
    tokens_of(named, "FP", condition=random_clip(), label="Crawlin")


def test_num_steps_is_a_word_of_its_own(pipeline: MagvitPipeline) -> None:
    decoding = DecodingConfig(num_steps=7, choice_temperature=2.0)
    found = pipeline("CG", label=0, num_steps=2, decoding=decoding).decoded.tokens_by_step
    assert torch.equal(found, pipeline("CG", label=0, decoding=replace(decoding, num_steps=2)).decoded.tokens_by_step)


def test_a_task_that_the_transformer_was_not_trained_for_is_refused(tmp_path: Path) -> None:
    pipeline = build(tasks=("FP", "CFP"))
    pipeline.save_pretrained(tmp_path)
    for asked in (pipeline, MagvitPipeline.from_pretrained(tmp_path)):
        tokens_of(asked, "CFP", condition=random_clip(), label=1)
        with pytest.raises(Refusal, match=r"task OPC \(central outpainting\): .* trained for FP, CFP;") as refusal:
            tokens_of(asked, "central_outpainting", condition=random_clip())
        assert "\n" not in str(refusal.value)
        with pytest.raises(Refusal, match="trained for FP, CFP"):
            asked.generate_from_tokens("CG", None, 0, 1)


def test_one_folder_holds_models_classes_and_frame_rate(pipeline: MagvitPipeline, tmp_path: Path) -> None:
    classes = ("Archery", "Bowling", "Crawling")
    MagvitPipeline(pipeline.tokenizer, pipeline.transformer, classes, fps=25).save_pretrained(tmp_path)
    loaded = MagvitPipeline.from_pretrained(tmp_path, device="cpu")
    assert (loaded.classes, loaded.fps, loaded.clip_shape) == (classes, 25, CLIP)
    expected = tokens_of(pipeline, "CFP", condition=random_clip(), label=[1, 0])
    assert torch.equal(tokens_of(loaded, "CFP", condition=random_clip(), label=["Bowling", "Archery"]), expected)
    with pytest.raises(Refusal, match=r"no model_index\.json"):
        MagvitPipeline.from_pretrained(tmp_path / "tokenizer")
