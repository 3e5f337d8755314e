"""The quantiser: nearest entries, and above all which way each gradient goes (a swapped weight has the same value)."""

from math import log, sqrt

import numpy as np
import pytest
import torch
from torch import Tensor

from magvit_scale.vqgan.quantizer import Quantized, VectorQuantizer, compute_entropy_loss

SHAPE = (2, 3, 2, 3, 4)


def build(codebook_size: int = 8, dim: int = 3, temperature: float = 0.01) -> VectorQuantizer:
    torch.manual_seed(1)
    quantizer = VectorQuantizer(codebook_size, dim, temperature)
    torch.nn.init.normal_(quantizer.codebook)
    return quantizer


def random_latents(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def as_rows(latents: Tensor) -> Tensor:
    return latents.permute(0, 2, 3, 4, 1).reshape(-1, latents.shape[1])


def entropy_in_float64(logits: np.ndarray) -> float:
    logits = logits.astype(np.float64)
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    p = shifted / shifted.sum(1, keepdims=True)
    log_p = logits - logits.max(1, keepdims=True) - np.log(shifted.sum(1, keepdims=True))
    mean = p.mean(0)
    return -(p * log_p).sum(1).mean() + (mean * np.log(mean + 1e-5)).sum()


def test_ids_are_the_nearest_entries() -> None:
    quantizer, latents = build(), random_latents()
    rows, codebook = as_rows(latents).double(), quantizer.codebook.detach().double()
    expected = (rows[:, None] - codebook[None]).square().sum(2).argmin(1).reshape(2, 2, 3, 4)
    quantized = quantizer(latents)
    assert quantized.token_ids.dtype == torch.int64
    assert torch.equal(quantized.token_ids, expected)
    assert torch.equal(quantizer.tokenize(latents), expected)


def test_distances_are_squared_euclidean() -> None:
    quantizer, rows = build(), as_rows(random_latents())
    expected = (rows[:, None] - quantizer.codebook[None]).square().sum(2)
    torch.testing.assert_close(quantizer.compute_distances(rows), expected, rtol=1e-5, atol=1e-5)


def test_a_tie_goes_to_the_first_entry() -> None:
    quantizer = build(codebook_size=6, dim=2)
    # Small integers, so every distance is exact.
    quantizer.codebook.data = torch.tensor([[3.0, 3], [1, 0], [-1, 0], [1, 0], [0, 1], [0, -1]])
    latents = torch.tensor([[0.0, 0], [1, 0], [0, -2]]).T.reshape(1, 2, 1, 1, 3)
    assert quantizer.tokenize(latents).flatten().tolist() == [1, 1, 5]
    assert quantizer(latents).token_ids.flatten().tolist() == [1, 1, 5]


def test_ids_stay_in_range_for_extreme_latents() -> None:
    ids = build().tokenize(1e4 * random_latents())
    assert ids.min() >= 0
    assert ids.max() < 8


def test_looking_up_gives_rows_and_tokenizing_them_gives_the_ids_back() -> None:
    quantizer = build()
    ids = torch.randint(0, 8, (2, 2, 3, 4), generator=torch.Generator().manual_seed(0))
    rows = quantizer.look_up(ids)
    assert rows.shape == (2, 3, 2, 3, 4)
    assert torch.equal(rows[1, :, 0, 2, 3], quantizer.codebook[ids[1, 0, 2, 3]])
    assert torch.equal(quantizer.tokenize(rows), ids)


def test_the_decoder_sees_the_rows_of_the_ids() -> None:
    quantizer, latents = build(), random_latents()
    looked_up = quantizer.look_up(quantizer.tokenize(latents))
    torch.testing.assert_close(quantizer(latents).latents, looked_up, rtol=0, atol=1e-6)  # x + (q - x) rounds


def test_codebook_starts_uniform_in_the_official_range() -> None:
    torch.manual_seed(0)
    codebook, bound = VectorQuantizer(1024, 16).codebook, sqrt(3 / 1024)
    assert codebook.abs().max() <= bound
    assert codebook.abs().max() > 0.999 * bound
    assert codebook.std().item() == pytest.approx(bound / sqrt(3), rel=0.02)


def test_straight_through_hands_the_decoders_gradient_to_the_encoder_only() -> None:
    quantizer, latents = build(), random_latents().requires_grad_()
    weights = random_latents(seed=5)
    (weights * quantizer(latents).latents).sum().backward()
    assert torch.equal(latents.grad, weights)
    assert quantizer.codebook.grad is None


def test_commitment_moves_the_encoder_only() -> None:
    quantizer, latents = build(), random_latents().requires_grad_()
    quantized = quantizer(latents)
    quantized.commitment_loss.backward()
    assert quantizer.codebook.grad is None
    chosen = quantizer.look_up(quantized.token_ids).detach()
    torch.testing.assert_close(latents.grad, 2 * (latents.detach() - chosen) / latents.numel())


def test_codebook_loss_moves_the_codebook_only() -> None:
    quantizer, latents = build(), random_latents().requires_grad_()
    quantized = quantizer(latents)
    quantized.codebook_loss.backward()
    assert latents.grad is None
    rows, ids = as_rows(latents).detach(), quantized.token_ids.flatten()
    expected = torch.zeros_like(quantizer.codebook)
    expected.index_add_(0, ids, 2 * (quantizer.codebook.detach()[ids] - rows) / latents.numel())
    torch.testing.assert_close(quantizer.codebook.grad, expected)


def test_both_losses_pull_equally_before_they_are_weighted() -> None:
    quantizer = build(codebook_size=4)
    # One latent near each entry: then an entry's gradient is the opposite of its latent's.
    latents = (quantizer.look_up(torch.arange(4).reshape(1, 1, 2, 2)).detach() + 0.01).requires_grad_()
    quantized = quantizer(latents)
    assert quantized.commitment_loss.item() == quantized.codebook_loss.item() == pytest.approx(1e-4, rel=1e-3)
    (to_latents,) = torch.autograd.grad(quantized.commitment_loss, latents)
    (to_codebook,) = torch.autograd.grad(quantized.codebook_loss, quantizer.codebook)
    torch.testing.assert_close(as_rows(to_latents), -to_codebook)


@pytest.mark.parametrize("temperature", [0.01, 1.0])
def test_entropy_loss_is_sample_minus_batch_entropy(temperature: float) -> None:
    quantizer, latents = build(temperature=temperature), random_latents()
    rows, codebook = as_rows(latents).double().numpy(), quantizer.codebook.detach().double().numpy()
    distances = np.square(rows[:, None] - codebook[None]).sum(2)
    expected = entropy_in_float64(-distances / temperature)
    # Float32 distances of about 10, divided by 0.01, are known to about 1e-4.
    assert quantizer(latents).entropy_loss.item() == pytest.approx(expected, abs=1e-3)


def test_entropy_loss_at_its_extremes() -> None:
    sharp_and_even = compute_entropy_loss(1e3 * torch.eye(16))
    assert sharp_and_even.item() == pytest.approx(-log(16), abs=1e-3)
    assert compute_entropy_loss(torch.zeros(5, 16)).item() == pytest.approx(0.0, abs=1e-3)
    one_code_only = compute_entropy_loss(1e3 * torch.eye(16)[[3] * 16])
    assert one_code_only.item() == pytest.approx(0.0, abs=1e-3)
    # Between them, in float64.
    logits = np.random.default_rng(0).normal(size=(40, 16)) * 3
    found = compute_entropy_loss(torch.from_numpy(logits).float()).item()
    assert found == pytest.approx(entropy_in_float64(logits), abs=1e-5)


def test_entropy_gradient_reaches_encoder_and_codebook() -> None:
    quantizer, latents = build(temperature=1.0), random_latents().requires_grad_()
    quantizer(latents).entropy_loss.backward()
    assert latents.grad.abs().sum() > 0
    assert quantizer.codebook.grad.abs().sum() > 0


def test_low_precision_latents_keep_float32_losses() -> None:
    quantizer, latents = build(), random_latents().bfloat16()
    quantized = quantizer(latents)
    assert quantized.latents.dtype == torch.bfloat16
    exact = quantizer(latents.float())
    assert torch.equal(quantized.token_ids, exact.token_ids)
    for name in ("commitment_loss", "codebook_loss", "entropy_loss"):
        assert torch.equal(getattr(quantized, name), getattr(exact, name))


def differentiate(quantizer: VectorQuantizer, latents: Tensor) -> tuple[Quantized, list[Tensor], int]:
    """What it gives, the gradients of latents and codebook, and the size of the largest tensor kept for them."""
    sizes: list[int] = []
    leaf = latents.clone().requires_grad_()

    def keep(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=latents.dtype == torch.bfloat16)
    with autocast, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        quantized = quantizer(leaf)
        losses = quantized.entropy_loss + 0.5 * quantized.commitment_loss + 0.25 * quantized.codebook_loss
    return quantized, list(torch.autograd.grad(losses, [leaf, quantizer.codebook])), max(sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("most_distances", [1, 100, 1600])
def test_parts_are_the_whole(monkeypatch: pytest.MonkeyPatch, most_distances: int, dtype: torch.dtype) -> None:
    quantizer, latents = build(codebook_size=50, temperature=1.0), random_latents().to(dtype)
    whole, expected, kept = differentiate(quantizer, latents)
    assert kept == 48 * 50
    monkeypatch.setattr("magvit_scale.vqgan.quantizer.MOST_DISTANCES", most_distances)
    parts, found, kept = differentiate(quantizer, latents)
    assert kept == latents.numel() == 48 * 3
    assert torch.equal(parts.token_ids, whole.token_ids)
    assert torch.equal(parts.latents, whole.latents)
    for name in ("commitment_loss", "codebook_loss", "entropy_loss"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-5, atol=1e-6)  # order of sums
    for one, other in zip(found, expected, strict=True):
        assert other.any()
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_parts_without_gradients_are_the_whole_too(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer, latents = build(), random_latents()
    with torch.no_grad():
        whole = quantizer(latents)
        monkeypatch.setattr("magvit_scale.vqgan.quantizer.MOST_DISTANCES", 100)
        parts = quantizer(latents)
    assert torch.equal(parts.token_ids, whole.token_ids)
    torch.testing.assert_close(parts.entropy_loss, whole.entropy_loss, rtol=1e-5, atol=1e-6)


def test_one_part_is_computed_once_and_more_of_them_again(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer, compared = build(), []
    plain = quantizer.compute_distances
    monkeypatch.setattr(quantizer, "compute_distances", lambda vectors: compared.append(len(vectors)) or plain(vectors))
    differentiate(quantizer, random_latents())
    assert compared == [48]
    monkeypatch.setattr("magvit_scale.vqgan.quantizer.MOST_DISTANCES", 8 * 20)
    differentiate(quantizer, random_latents())
    assert sorted(compared[1:]) == [8, 8, 20, 20, 20, 20]
