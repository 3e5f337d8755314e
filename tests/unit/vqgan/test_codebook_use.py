"""Codebook use against a brute force over the whole history, and revivals that are a function of their key."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from magvit_scale.config import CodebookUseConfig
from magvit_scale.vqgan.codebook_use import CodebookUse, choose_revivals
from magvit_scale.vqgan.quantizer import VectorQuantizer

SIZE = 6
CONFIG = CodebookUseConfig(window=3, dead_after=5)
COUNTS = st.lists(st.integers(0, 3), min_size=SIZE, max_size=SIZE)


def use_after(history: list[list[int]]) -> CodebookUse:
    use = CodebookUse(SIZE, CONFIG)
    for counts in history:
        use.update(torch.tensor(counts))
    return use


def brute_force(history: NDArray[np.int64]) -> dict[str, float]:
    """The same from the counts of all steps, 'step k'."""
    steps = len(history)
    ages = np.array([next((age for age in range(steps) if history[steps - 1 - age, k]), steps) for k in range(SIZE)])
    weights = (1 - 2 / (CONFIG.window + 1)) ** np.arange(steps - 1, -1, -1.0)
    hits = weights @ history
    share = hits[hits > 0] / hits.sum() if hits.sum() else np.ones(1)
    return {
        "codebook/usage_batch": (history[-1:] > 0).any(axis=0).mean(),
        "codebook/usage_window": (history[-CONFIG.window :] > 0).any(axis=0).mean(),
        "codebook/perplexity": np.exp(-(share * np.log(share)).sum()),
        "codebook/dead_codes": (ages >= CONFIG.dead_after).mean(),
        "codebook/oldest_age": ages.max(),
    }


@settings(deadline=None, max_examples=150)
@given(st.lists(COUNTS, max_size=14))
def test_metrics_equal_those_of_the_whole_history(history: list[list[int]]) -> None:
    metrics = {name: value.item() for name, value in use_after(history).metrics().items()}
    expected = brute_force(np.array(history, dtype=np.int64).reshape(-1, SIZE))
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=1e-5), name


def test_relative_use_is_one_for_even_use_and_forgets_as_the_perplexity_does() -> None:
    assert use_after([]).relative_use().tolist() == [0] * SIZE
    assert use_after([[2] * SIZE] * 4).relative_use().tolist() == pytest.approx([1] * SIZE)
    # A step later, a hit weighs half of a new one.
    found = use_after([[0, 4, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]).relative_use().tolist()
    assert found == pytest.approx([SIZE / 3, SIZE * 2 / 3, 0, 0, 0, 0])


def test_a_codebook_that_collapses_is_seen_within_the_window_though_it_was_used_whole() -> None:
    even, collapsed = [[1] * SIZE] * 8, [[SIZE, 0, 0, 0, 0, 0]]
    windows = [use_after(even + collapsed * n).metrics() for n in range(6)]
    assert [round(m["codebook/usage_batch"].item() * SIZE) for m in windows] == [6, 1, 1, 1, 1, 1]
    assert [round(m["codebook/usage_window"].item() * SIZE) for m in windows] == [6, 6, 6, 1, 1, 1]
    assert [round(m["codebook/dead_codes"].item() * SIZE) for m in windows] == [0, 0, 0, 0, 0, 5]
    assert [m["codebook/oldest_age"].item() for m in windows] == [0, 1, 2, 3, 4, 5]
    perplexity = [m["codebook/perplexity"].item() for m in windows]
    assert perplexity[0] == pytest.approx(SIZE)
    assert perplexity == sorted(perplexity, reverse=True)
    assert perplexity[5] < 1.3


def test_a_young_run_is_neither_dead_nor_in_full_use() -> None:
    none, one = CodebookUse(SIZE, CONFIG).metrics(), use_after([[0, 4, 0, 0, 0, 0]]).metrics()
    assert (none["codebook/usage_window"].item(), none["codebook/dead_codes"].item()) == (0, 0)
    assert none["codebook/perplexity"].item() == 1
    assert one["codebook/usage_window"].item() == pytest.approx(1 / SIZE)
    assert one["codebook/dead_codes"].item() == 0


@pytest.mark.parametrize("convert", [Tensor.long, Tensor.float])
def test_counts_may_be_whole_numbers_or_float32(convert: Callable[[Tensor], Tensor]) -> None:
    use = CodebookUse(SIZE, CONFIG)
    use.update(convert(torch.tensor([0, 2, 0, 1, 0, 1])))
    assert use.hits.tolist() == [0, 2, 0, 1, 0, 1]
    assert use.age.tolist() == [1, 0, 1, 0, 1, 0]


def test_a_checkpoint_carries_all_of_it(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).integers(0, 3, (20, SIZE)).tolist()
    straight, broken, resumed = use_after(counts), use_after(counts[:9]), CodebookUse(SIZE, CONFIG)
    save_file(broken.state_dict(), tmp_path / "use.safetensors")
    resumed.load_state_dict(load_file(tmp_path / "use.safetensors"))
    for one in counts[9:]:
        resumed.update(torch.tensor(one))
    assert resumed.state_dict().keys() == {"hits", "age", "steps"}
    assert all(torch.equal(resumed.state_dict()[name], tensor) for name, tensor in straight.state_dict().items())


def test_revived_codes_count_as_used_only_when_a_batch_uses_them() -> None:
    use = use_after([[9, 9, 0, 0, 0, 0]] * 7)
    assert use.metrics()["codebook/dead_codes"].item() == pytest.approx(4 / SIZE)
    use.mark_revived(torch.tensor([2, 3, 4]))
    metrics = use.metrics()
    assert metrics["codebook/dead_codes"].item() == pytest.approx(1 / SIZE)
    assert metrics["codebook/usage_window"].item() == pytest.approx(2 / SIZE)
    use.update(torch.tensor([9, 9, 5, 0, 0, 0]))
    assert use.metrics()["codebook/usage_window"].item() == pytest.approx(3 / SIZE)
    use.update(torch.tensor([9, 9, 0, 0, 0, 0]))
    assert use.age.tolist() == [0, 0, 1, 5, 5, 9], "dead once more after dead_after - window steps"


AGE = torch.tensor([0, 7, 5, 4, 9, 7])


def vectors_of(count: int) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(1))


def test_dead_codes_move_onto_distinct_vectors_longest_dead_first() -> None:
    vectors = vectors_of(20)
    code_ids, rows = choose_revivals(AGE, vectors, dead_after=5, key=(0, 3))
    assert (code_ids.dtype, code_ids.tolist()) == (torch.int64, [4, 1, 5, 2])
    assert rows.dtype == torch.float32
    sources = [(vectors == row).all(dim=1).nonzero().flatten().tolist() for row in rows]
    assert all(len(source) == 1 for source in sources)
    assert len({source[0] for source in sources}) == 4


def test_of_equally_old_codes_the_first_move_where_vectors_are_few() -> None:
    code_ids, _ = choose_revivals(torch.arange(3000) // 1500 + 7, vectors_of(400), dead_after=5, key=(0, 3))
    assert code_ids.tolist() == list(range(1500, 1900))


def test_the_draw_is_a_function_of_the_key_alone() -> None:
    vectors = vectors_of(1000)
    rows = {key: choose_revivals(AGE, vectors, 5, key)[1] for key in [(0, 3), (0, 4), (1, 3)]}
    torch.manual_seed(12345)
    again = choose_revivals(AGE, vectors[torch.randperm(1000)], 5, (0, 3))[1]
    assert torch.equal(again, rows[0, 3]), "neither the world's generators nor the order of ranks may matter"
    assert not torch.equal(rows[0, 3], rows[0, 4])
    assert not torch.equal(rows[0, 3], rows[1, 3])


def test_every_vector_is_as_likely_as_any_other() -> None:
    vectors = torch.arange(4.0).unsqueeze(1)
    age = torch.tensor([9, 0])
    drawn = [choose_revivals(age, vectors, 5, (0, step))[1].item() for step in range(2000)]
    assert np.bincount(np.array(drawn, dtype=int), minlength=4) / 2000 == pytest.approx([0.25] * 4, abs=0.05)


def test_equal_vectors_revive_one_code() -> None:
    """Still frames give the same vector everywhere: a second copy of a code would never be the nearest."""
    code_ids, rows = choose_revivals(AGE, torch.ones(50, 3), dead_after=5, key=(0, 0))
    assert code_ids.tolist() == [4]
    assert rows.tolist() == [[1, 1, 1]]


def test_a_collapsed_codebook_is_in_full_use_after_a_revival() -> None:
    """One code is nearest to everything, the others lie far away, as after a collapse."""
    quantizer = VectorQuantizer(SIZE, 3)
    quantizer.codebook.data.fill_(50)
    quantizer.codebook.data[2] = 0
    latents = rearrange(vectors_of(64), "(t h w) d -> 1 d t h w", t=4, h=4)
    use = CodebookUse(SIZE, CONFIG)
    for _ in range(CONFIG.dead_after):
        use.update(torch.bincount(quantizer.tokenize(latents).flatten(), minlength=SIZE))
    assert use.metrics()["codebook/usage_batch"].item() == pytest.approx(1 / SIZE)
    code_ids, rows = choose_revivals(use.age, vectors_of(64), CONFIG.dead_after, key=(0, CONFIG.dead_after))
    quantizer.codebook.data[code_ids] = rows
    use.mark_revived(code_ids)
    use.update(torch.bincount(quantizer.tokenize(latents).flatten(), minlength=SIZE))
    assert use.metrics()["codebook/usage_batch"].item() == 1


def test_without_dead_codes_nothing_moves_and_the_inputs_never_change() -> None:
    age, vectors = AGE.clone(), vectors_of(5).half().requires_grad_()
    code_ids, rows = choose_revivals(age, vectors, dead_after=10, key=(0, 0))
    assert (code_ids.shape, rows.shape, rows.dtype) == ((0,), (0, 3), torch.float32)
    _, rows = choose_revivals(age, vectors, dead_after=5, key=(0, 0))
    assert not rows.requires_grad
    assert torch.equal(age, AGE)
    assert torch.equal(vectors, vectors_of(5).half())
