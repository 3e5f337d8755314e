"""COMMIT decoding with models whose answer is known."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from magvit_scale.commit.decoding import Decoded, Logits, decode
from magvit_scale.commit.masking import Schedule
from magvit_scale.commit.tasks import MASK_TOKEN
from magvit_scale.config import DecodingConfig, Refusal

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


def run(logits: Logits, config: DecodingConfig, condition: Tensor | None = None, seed: int = 0) -> Decoded:
    if condition is None:
        condition = torch.zeros(BATCH, NUM_TOKENS, dtype=torch.bool)
    canvas = torch.full((BATCH, NUM_TOKENS), CODES - 1)
    return decode(logits, canvas, condition, config, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("num_steps", [1, 2, 3, 12, 64])
@pytest.mark.parametrize("choice_temperature", [0.0, 4.5])
def test_an_oracle_is_decoded_in_any_number_of_steps(num_steps: int, choice_temperature: float) -> None:
    decoded = run(oracle, DecodingConfig(num_steps=num_steps, choice_temperature=choice_temperature))
    assert torch.equal(decoded.tokens, truth())
    assert decoded.tokens_by_step.shape == decoded.fixed_by_step.shape == (num_steps, BATCH, NUM_TOKENS)
    assert torch.equal(decoded.tokens_by_step[-1], decoded.tokens)


@pytest.mark.parametrize("schedule", ["cosine", "uniform", "exp", "log"])
@pytest.mark.parametrize("num_steps", [1, 6, 12])
def test_unknown_tokens_strictly_decrease_to_none(schedule: Schedule, num_steps: int) -> None:
    decoded = run(noisy, DecodingConfig(num_steps=num_steps, schedule=schedule))
    unknown = torch.cat([torch.full((1, BATCH), NUM_TOKENS), (~decoded.fixed_by_step).sum(2)])
    assert (unknown.diff(dim=0) < 0).all()
    assert (unknown[-1] == 0).all()


def test_one_token_is_fixed_per_step_where_there_are_as_many_steps_as_tokens() -> None:
    decoded = run(noisy, DecodingConfig(num_steps=NUM_TOKENS, schedule="uniform"))
    assert (~decoded.fixed_by_step).sum(2)[:, 0].tolist() == list(range(NUM_TOKENS))[::-1]


def test_counts_follow_the_cosine_schedule() -> None:
    def flat(latents: Tensor, unknown: Tensor) -> Tensor:
        return torch.randn(1, 1024, 4, generator=torch.Generator().manual_seed(2))

    nothing = torch.zeros(1, 1024, dtype=torch.bool)
    decoded = decode(flat, nothing.long(), nothing, DecodingConfig(), torch.Generator().manual_seed(0))
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
    decoded = run(watching, DecodingConfig(), condition)
    start = torch.where(condition, CODES - 1, MASK_TOKEN)
    assert torch.equal(seen[0], start)
    for step in range(1, 12):
        fixed = decoded.fixed_by_step[step - 1]
        assert torch.equal(seen[step], torch.where(fixed, decoded.tokens_by_step[step - 1], start))


def test_condition_positions_are_sampled_too() -> None:
    everything = torch.ones(BATCH, NUM_TOKENS, dtype=torch.bool)
    decoded = run(oracle, DecodingConfig(num_steps=4), everything)
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
    nothing = torch.zeros(4, 2500, dtype=torch.bool)

    def share(temperature: float) -> Tensor:
        config = DecodingConfig(num_steps=1, sampling_temperature=temperature)
        decoded = decode(
            lambda latents, unknown: logits.expand(4, 2500, 4),
            nothing.long(),
            nothing,
            config,
            torch.Generator().manual_seed(0),
        )
        return torch.bincount(decoded.tokens.flatten(), minlength=4) / 10_000

    for temperature in (1.0, 0.5):
        expected = (logits / temperature).softmax(0)
        torch.testing.assert_close(share(temperature), expected, rtol=0, atol=0.02)  # four deviations of 0.005


def test_decoding_is_a_function_of_the_generator_alone() -> None:
    first = run(noisy, DecodingConfig(), seed=3)
    torch.manual_seed(77)
    state = torch.get_rng_state()
    again, other = run(noisy, DecodingConfig(), seed=3), run(noisy, DecodingConfig(), seed=4)
    assert torch.equal(first.tokens_by_step, again.tokens_by_step)
    assert torch.equal(first.fixed_by_step, again.fixed_by_step)
    assert not torch.equal(first.tokens, other.tokens)
    assert torch.equal(torch.get_rng_state(), state)


def test_ties_do_not_keep_tokens_unknown() -> None:
    """A sure model: log-probabilities of exactly 0 everywhere, and no noise to tell them apart."""

    def sure(latents: Tensor, unknown: Tensor) -> Tensor:
        return 1e4 * torch.nn.functional.one_hot(truth(), CODES).float()

    decoded = run(sure, DecodingConfig(num_steps=4, choice_temperature=0.0, schedule="uniform"))
    assert (~decoded.fixed_by_step).sum(2)[:, 0].tolist() == [48, 32, 16, 0]


def test_a_last_unknown_token_is_fixed_before_the_last_step() -> None:
    nothing = torch.zeros(1, 32, dtype=torch.bool)
    logits = torch.randn(1, 32, 8, generator=torch.Generator().manual_seed(0))
    config = DecodingConfig(num_steps=12, schedule="log")  # one token is left after 10 steps
    decoded = decode(lambda *_: logits, nothing.long(), nothing, config, torch.Generator().manual_seed(0))
    assert (~decoded.fixed_by_step).sum((1, 2)).tolist()[-4:] == [2, 1, 0, 0]


@pytest.mark.parametrize("change", [{"num_steps": 0}, {"sampling_temperature": 0.0}])
def test_settings_without_meaning_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(Refusal, match=next(iter(change))):
        run(noisy, replace(DecodingConfig(), **change))
