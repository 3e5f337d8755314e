"""Which condition tokens stand where, in the four ways of conditioning."""

import pytest
import torch

from magvit_scale.commit.condition import build_condition, fixed_mask, room_for_conditions
from magvit_scale.commit.tasks import MASK_TOKEN, latent_mask
from magvit_scale.config import TASKS, Refusal, RunConfig, Task, TrainCommitConfig, TransformerConfig

LATENT = (4, 16, 16)


def config(*tasks: Task, one_task_per_step: bool = True, **changes: object) -> TrainCommitConfig:
    return TrainCommitConfig(
        run=RunConfig(folder="unused", steps=1, global_batch_size=1),
        tokens="unused",
        tokenizer="unused",
        model=TransformerConfig(**changes),  # type: ignore[arg-type]
        tasks=tasks,
        one_task_per_step=one_task_per_step,
    )


@pytest.mark.parametrize("conditioning", ["commit", "canvas", "latent", "prefix"])
def test_a_condition_starts_from_its_tokens_in_its_place_or_ahead(conditioning: str) -> None:
    model = TransformerConfig(conditioning=conditioning)  # type: ignore[arg-type]
    tokens = torch.arange(64).expand(2, 64)
    condition = build_condition(["OPC"] * 2, tokens, (4, 4, 4), model)
    given = latent_mask("OPC", (4, 4, 4), model).flatten().expand(2, -1)
    is_ahead, is_fixed = conditioning == "prefix", conditioning in ("canvas", "latent")
    assert torch.equal(condition.start, torch.where(given & (not is_ahead), tokens, MASK_TOKEN))
    assert torch.equal(condition.is_fixed, given & is_fixed)
    assert torch.equal(fixed_mask("OPC", (4, 4, 4), model).flatten().expand(2, -1), condition.is_fixed)
    # Rows and columns 1 and 2 of every frame, in the order of the latents.
    ahead = [16 * t + 4 * h + w for t in range(4) for h in (1, 2) for w in (1, 2)]
    assert condition.before.tolist() == ([[*ahead, -2]] * 2 if is_ahead else [[], []])


def test_generation_has_nothing_ahead_and_no_separator() -> None:
    model = TransformerConfig(conditioning="prefix")
    assert build_condition(["CG"] * 3, torch.zeros(3, 8, dtype=torch.int64), (2, 2, 2), model).before.shape == (3, 0)


def test_room_is_for_the_task_that_gives_most() -> None:
    assert room_for_conditions(config(*TASKS), LATENT) == 0
    assert room_for_conditions(config("FP", "CG", conditioning="prefix"), LATENT) == 256
    assert room_for_conditions(config(*TASKS, conditioning="prefix"), LATENT) == 768
    paper = config("IPD", conditioning="prefix", dynamic_condition="paper")
    assert room_for_conditions(paper, LATENT) == 832
    assert room_for_conditions(config("FP", conditioning="prefix", num_condition_tokens=300), LATENT) == 300


@pytest.mark.parametrize(
    ("of", "words"),
    [
        (config("FI", conditioning="prefix", num_condition_tokens=511), "num_condition_tokens=511, a task has 512"),
        (
            config("FP", "FI", "OPC", conditioning="prefix", one_task_per_step=False),
            r"\[256, 512\] .* set one_task_per_step=true",
        ),
    ],
)
def test_too_little_room_and_mixed_batches_are_refused(of: TrainCommitConfig, words: str) -> None:
    with pytest.raises(Refusal, match=words) as refusal:
        room_for_conditions(of, LATENT)
    assert "\n" not in str(refusal.value)


def test_tasks_of_one_number_may_share_a_batch_ahead_of_the_latents() -> None:
    mixed = config("FP", "OPC", conditioning="prefix", one_task_per_step=False)
    assert room_for_conditions(mixed, LATENT) == 256
    condition = build_condition(["FP", "OPC"], torch.arange(1024).expand(2, -1), LATENT, mixed.model)
    assert condition.before.shape == (2, 257)
    assert condition.before[0, :3].tolist() == [0, 1, 2]
    assert condition.before[1, 0].item() == 4 * 16 + 4
