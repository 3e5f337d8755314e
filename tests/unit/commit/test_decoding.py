"""COMMIT decoding with models whose answer is known."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from magvit_scale.commit.condition import build_condition
from magvit_scale.commit.decoding import Decoded, Logits, Noise, decode, draw_noise, guided
from magvit_scale.commit.tasks import MASK_TOKEN
from magvit_scale.config import TASKS, DecodingConfig, Refusal, Task, TransformerConfig
from tests.fake_gpu import fake_gpu

BATCH, NUM_TOKENS, CODES = 3, 64, 16


def truth() -> Tensor:
    return torch.randint(0, CODES, (BATCH, NUM_TOKENS), generator=torch.Generator().manual_seed(0))


def oracle(latents: Tensor, unknown: Tensor) -> Tensor:
    """Sure of the truth, by a margin that differs from token to token so that confidences have no ties."""
    margins = torch.linspace(20, 24, NUM_TOKENS, dtype=torch.float64)
    return torch.nn.functional.one_hot(truth(), CODES) * margins[None, :, None]


def noisy(latents: Tensor, unknown: Tensor) -> Tensor:
    """A fixed table of flat logits: sampling matters, and confidences differ."""
    return torch.randn(BATCH, NUM_TOKENS, CODES, generator=torch.Generator().manual_seed(1))


def noise_of(seeds: Iterable[int]) -> Noise:
    return draw_noise([torch.Generator().manual_seed(seed) for seed in seeds])


def run(
    logits: Logits, config: DecodingConfig, start: Tensor | None = None, fixed: Tensor | None = None, seed: int = 0
) -> Decoded:
    """Decodes from `start` (MASK everywhere) all but the `fixed` positions (none)."""
    start = torch.full((BATCH, NUM_TOKENS), MASK_TOKEN) if start is None else start
    unknown = torch.ones_like(start, dtype=torch.bool) if fixed is None else ~fixed
    return decode(logits, start, unknown, config, noise_of(range(seed, seed + len(start))))


SCHEDULES = ("cosine", "uniform", "exp", "log", "pow2.5", "poly:-1.0,1.0")
FEW = settings(max_examples=50, deadline=None, derandomize=True)


@FEW
@given(
    st.sampled_from((*TASKS, "FP5")),
    st.integers(1, 20),
    st.sampled_from(SCHEDULES),
    st.sampled_from(["commit", "canvas", "latent", "prefix"]),
    st.sampled_from([0.0, 4.5]),
)
def test_an_oracle_is_decoded_in_any_number_of_steps(
    task: Task, num_steps: int, schedule: str, conditioning: str, choice_temperature: float
) -> None:
    model = TransformerConfig(conditioning=conditioning)  # type: ignore[arg-type]
    shown = truth() if conditioning == "latent" else torch.full_like(truth(), CODES - 1)
    condition = build_condition([task] * BATCH, shown, (4, 4, 4), model)
    config = DecodingConfig(num_steps=num_steps, schedule=schedule, choice_temperature=choice_temperature)
    decoded = run(oracle, config, condition.start, condition.is_fixed)
    assert torch.equal(decoded.tokens, torch.where(condition.is_fixed, shown, truth()))
    assert decoded.tokens_by_step.shape == decoded.fixed_by_step.shape == (num_steps, BATCH, NUM_TOKENS)
    assert torch.equal(decoded.tokens_by_step[-1], decoded.tokens)


@FEW
@given(st.integers(1, 20), st.sampled_from(SCHEDULES), st.integers(1, NUM_TOKENS), st.integers(0, 100))
def test_unknown_tokens_strictly_decrease_to_none(num_steps: int, schedule: str, num_unknown: int, seed: int) -> None:
    start = torch.where(torch.arange(NUM_TOKENS) < NUM_TOKENS - num_unknown, 3, MASK_TOKEN).expand(BATCH, -1)
    decoded = run(noisy, DecodingConfig(num_steps=num_steps, schedule=schedule), start, start >= 0, seed)
    unknown = torch.cat([torch.full((1, BATCH), num_unknown), (~decoded.fixed_by_step).sum(2)])
    # Fewer tokens than steps: all are known early.
    assert ((unknown.diff(dim=0) < 0) | (unknown[:-1] == 0)).all()
    assert (unknown[-1] == 0).all()
    assert (decoded.tokens_by_step >= 0).all()


def test_the_schedule_is_a_share_of_what_was_unknown_at_first() -> None:
    fixed = (torch.arange(NUM_TOKENS) < 32).expand(BATCH, -1)
    start = torch.where(fixed, 5, MASK_TOKEN)
    decoded = run(noisy, DecodingConfig(num_steps=4, schedule="uniform"), start, fixed)
    assert (~decoded.fixed_by_step).sum(2)[:, 0].tolist() == [24, 16, 8, 0]
    assert (decoded.tokens_by_step[:, fixed] == 5).all()


def test_one_token_is_fixed_per_step_where_there_are_as_many_steps_as_tokens() -> None:
    decoded = run(noisy, DecodingConfig(num_steps=NUM_TOKENS, schedule="uniform"))
    assert (~decoded.fixed_by_step).sum(2)[:, 0].tolist() == list(range(NUM_TOKENS))[::-1]


def test_counts_follow_the_cosine_schedule() -> None:
    def flat(latents: Tensor, unknown: Tensor) -> Tensor:
        return torch.randn(1, 1024, 4, generator=torch.Generator().manual_seed(2))

    decoded = run(flat, DecodingConfig(), torch.full((1, 1024), MASK_TOKEN))
    still_masked = (~decoded.fixed_by_step).sum((1, 2)).tolist()
    assert still_masked == [1015, 989, 946, 886, 812, 724, 623, 511, 391, 265, 133, 0]


def test_fixed_tokens_stay_fixed_and_never_change() -> None:
    decoded = run(noisy, DecodingConfig())
    for step in range(11):
        fixed = decoded.fixed_by_step[step]
        assert (decoded.fixed_by_step[step + 1] | ~fixed).all()
        for later in range(step + 1, 12):
            assert torch.equal(decoded.tokens_by_step[later][fixed], decoded.tokens_by_step[step][fixed])
    # Others are sampled again: with 16 flat codes they do not all repeat.
    unknown = ~decoded.fixed_by_step[0]
    assert (decoded.tokens_by_step[1] != decoded.tokens_by_step[0])[unknown].any()


def test_the_model_sees_fixed_tokens_the_canvas_in_the_condition_and_mask_elsewhere() -> None:
    seen: list[Tensor] = []

    def watching(latents: Tensor, unknown: Tensor) -> Tensor:
        seen.append(latents.clone())
        return noisy(latents, unknown)

    condition = torch.zeros(BATCH, NUM_TOKENS, dtype=torch.bool)
    condition[:, : NUM_TOKENS // 2] = True
    start = torch.where(condition, CODES - 1, MASK_TOKEN)
    decoded = run(watching, DecodingConfig(), start)
    assert torch.equal(seen[0], start)
    for step in range(1, 12):
        fixed = decoded.fixed_by_step[step - 1]
        assert torch.equal(seen[step], torch.where(fixed, decoded.tokens_by_step[step - 1], start))


def test_condition_positions_are_sampled_too() -> None:
    decoded = run(oracle, DecodingConfig(num_steps=4), torch.full((BATCH, NUM_TOKENS), CODES - 1))
    assert torch.equal(decoded.tokens, truth())
    assert not decoded.fixed_by_step[0].all()


def test_the_most_confident_tokens_are_fixed_first_without_noise() -> None:
    decoded = run(oracle, DecodingConfig(num_steps=4, choice_temperature=0.0, schedule="uniform"))
    # The oracle's margin grows along the sequence.
    for step, unknown in enumerate((48, 32, 16)):
        expected = torch.arange(NUM_TOKENS) >= unknown
        assert torch.equal(decoded.fixed_by_step[step], expected.expand(BATCH, -1))


def test_a_huge_choice_temperature_fixes_tokens_in_random_order() -> None:
    decoded = run(oracle, DecodingConfig(num_steps=2, choice_temperature=1e6, schedule="uniform"))
    fixed = decoded.fixed_by_step[0]
    assert fixed.sum(1).tolist() == [32] * BATCH
    assert 8 < fixed[0, :32].sum().item() < 24  # 16 +- 2.8 by chance; 0 without noise
    assert not torch.equal(fixed[0], fixed[1])


def test_sampling_follows_the_models_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])

    def share(**changes: float) -> Tensor:
        config = DecodingConfig(num_steps=1, **changes)  # type: ignore[arg-type]
        decoded = run(lambda *_: logits.expand(4, 2500, 4), config, torch.full((4, 2500), MASK_TOKEN))
        return torch.bincount(decoded.tokens.flatten(), minlength=4) / 10_000

    hidden = torch.tensor([0.0, -torch.inf, -torch.inf, 0.0])
    for changes, expected in (
        ({}, logits),
        ({"sampling_temperature": 0.5}, logits / 0.5),
        # The likeliest have a share of 0.64 and 0.24 of the whole.
        ({"top_k": 2}, logits + hidden[[1, 0, 0, 1]]),
        ({"top_p": 0.8}, logits + hidden[[1, 0, 0, 1]]),
        ({"top_p": 0.6}, logits + hidden[[1, 1, 0, 1]]),
        ({"top_k": 9}, logits),
        # Which codes add up to top_p is asked before the temperature flattens them.
        ({"top_p": 0.8, "sampling_temperature": 10.0}, logits / 10 + hidden[[1, 0, 0, 1]]),
    ):
        # four deviations of 0.005
        torch.testing.assert_close(share(**changes), expected.softmax(0), rtol=0, atol=0.02)


def test_one_candidate_is_no_draw() -> None:
    config = DecodingConfig(num_steps=1, top_k=1)
    assert torch.equal(run(noisy, config, seed=1).tokens, noisy(truth(), truth()).argmax(-1))


def test_confidences_are_of_the_model_and_not_of_the_sampling() -> None:
    """With one candidate everything sampled is certain; the order still goes by the model's own probabilities."""
    logits = noisy(truth(), truth())
    config = DecodingConfig(num_steps=2, choice_temperature=0.0, top_k=1, sampling_temperature=0.01, schedule="uniform")
    fixed = run(noisy, config).fixed_by_step[0]
    sure = logits.log_softmax(-1).amax(-1)
    assert all(row[where].min() > row[~where].max() for row, where in zip(sure, fixed, strict=True))


def test_guidance_moves_logits_away_from_what_hides_the_condition() -> None:
    seen: list[Tensor] = []

    def free(latents: Tensor, unknown: Tensor) -> Tensor:
        seen.append(latents)
        return torch.full((1, 4, 2), 1.0)

    latents, condition = torch.tensor([[3, 4, 5, MASK_TOKEN]]), torch.tensor([[True, True, False, False]])
    unknown = torch.tensor([[True, False, True, True]])
    told = torch.arange(8.0).reshape(1, 4, 2)
    found = guided(lambda *_: told, free, condition, 1.5)(latents, unknown)
    assert torch.equal(found, 2.5 * told - 1.5)
    assert seen[0].tolist() == [[MASK_TOKEN, 4, 5, MASK_TOKEN]]
    assert torch.equal(guided(lambda *_: told, free, condition, 0.0)(latents, unknown), told)
    assert len(seen) == 1


def test_decoding_is_a_function_of_the_generator_alone() -> None:
    first = run(noisy, DecodingConfig(), seed=3)
    torch.manual_seed(77)
    state = torch.get_rng_state()
    again, other = run(noisy, DecodingConfig(), seed=3), run(noisy, DecodingConfig(), seed=4)
    assert torch.equal(first.tokens_by_step, again.tokens_by_step)
    assert torch.equal(first.fixed_by_step, again.fixed_by_step)
    assert not torch.equal(first.tokens, other.tokens)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_clips_noise_is_its_own_whatever_stands_beside_it() -> None:
    shape, draws = torch.Size((3, 5, 7)), 3
    together = noise_of([4, 9, 4])
    batches = [together(shape) for _ in range(draws)]
    for row, seed in enumerate((4, 9, 4)):
        alone = noise_of([seed])
        for batch in batches:
            assert torch.equal(alone(torch.Size((1, 5, 7)))[0], batch[row])
    assert not torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0][0], batches[0][1])
    with pytest.raises(ValueError, match="3 generators for a batch of 2"):
        together(torch.Size((2, 5, 7)))


def test_noise_is_of_the_standard_gumbel_distribution() -> None:
    noise = -noise_of([0])(torch.Size((1, 100_000))).log()
    # Mean: Euler's constant; variance: pi^2 / 6. Four deviations of each.
    assert abs(noise.mean().item() - 0.5772) < 0.017
    assert abs(noise.var().item() - 1.6449) < 0.05


def test_ties_do_not_keep_tokens_unknown() -> None:
    """A sure model: log-probabilities of exactly 0 everywhere, and no noise to tell them apart."""

    def sure(latents: Tensor, unknown: Tensor) -> Tensor:
        return 1e4 * torch.nn.functional.one_hot(truth(), CODES).float()

    decoded = run(sure, DecodingConfig(num_steps=4, choice_temperature=0.0, schedule="uniform"))
    assert (~decoded.fixed_by_step).sum(2)[:, 0].tolist() == [48, 32, 16, 0]


def test_a_last_unknown_token_is_fixed_before_the_last_step() -> None:
    logits = torch.randn(1, 32, 8, generator=torch.Generator().manual_seed(0))
    config = DecodingConfig(num_steps=12, schedule="log")  # one token is left after 10 steps
    decoded = run(lambda *_: logits, config, torch.full((1, 32), MASK_TOKEN))
    assert (~decoded.fixed_by_step).sum((1, 2)).tolist()[-4:] == [2, 1, 0, 0]


@pytest.mark.parametrize(
    "change",
    [
        {"num_steps": 0},
        {"sampling_temperature": 0.0},
        {"top_k": -1},
        {"top_p": 1.5},
        {"top_p": 0.5, "top_k": 3},
        {"schedule": "sine"},
        {"schedule": "pow-1"},
        {"schedule": "poly:"},
        {"schedule": "poly:1,,2"},
    ],
)
def test_settings_without_meaning_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(Refusal, match=f"decoding.{next(iter(change))}") as refusal:
        replace(DecodingConfig(), **change)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("change", [{}, {"num_steps": 3}, {"top_k": 3}, {"top_p": 0.5}, {"schedule": "log"}])
def test_nothing_is_asked_of_the_device_and_one_thing_brought_to_it(change: dict[str, Any]) -> None:
    with fake_gpu() as travels:
        start = torch.full((BATCH, NUM_TOKENS), MASK_TOKEN, device="cuda")
        answer = torch.empty((BATCH, NUM_TOKENS, CODES), device="cuda")
        logits = guided(lambda *_: answer, lambda *_: answer, start == MASK_TOKEN, scale=1.0)
        unknown = torch.ones_like(start, dtype=torch.bool)
        noise = partial(torch.rand, device="cuda")
        decoded = decode(logits, start, unknown, DecodingConfig(**change), noise)
        assert decoded.tokens.device.type == "cuda"
    assert len(travels) == 1  # the schedule
