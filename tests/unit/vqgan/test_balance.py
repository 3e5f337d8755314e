"""What the two networks' logits say about their balance."""

import pytest
import torch

from magvit_scale.config import HealthConfig, HealthRule
from magvit_scale.training.health import Health
from magvit_scale.vqgan.balance import discriminator_health
from magvit_scale.vqgan.losses import LeCam


def test_each_value_of_a_batch_worked_by_hand() -> None:
    lecam = LeCam(0.5)
    lecam.update(torch.tensor(4.0), torch.tensor(-1.0))
    real = torch.tensor([[2.0], [0.5], [-1.0], [0.0]], requires_grad=True)
    fake = torch.tensor([-3.0, -1.0, -2.0, 5.0])
    values = discriminator_health(real, fake, lecam)
    assert {name: value.item() for name, value in values.items()} == {
        "gan/accuracy_real": 0.5,  # 0 is no decision
        "gan/accuracy_fake": 0.75,
        "gan/accuracy": 0.625,
        "gan/logits_real": 0.375,
        "gan/logits_fake": -0.25,
        "gan/lecam_gap": 2.5,
    }
    assert not any(value.requires_grad for value in values.values())


def test_the_mean_over_ranks_is_the_value_of_the_whole_batch() -> None:
    real, fake = torch.randn(2, 8, 1, generator=torch.Generator().manual_seed(0))
    parts = [discriminator_health(real[rank::2], fake[rank::2], LeCam(0.9)) for rank in range(2)]
    for name, value in discriminator_health(real, fake, LeCam(0.9)).items():
        assert (sum(part[name] for part in parts) / 2).item() == pytest.approx(value.item(), abs=1e-6)


@pytest.mark.parametrize(("offset", "accuracy"), [(0.0, 1.0), (100.0, 0.5), (-100.0, 0.5)])
def test_one_answer_to_everything_is_no_victory(offset: float, accuracy: float) -> None:
    """Told apart by the mean of both accuracies alone: each by itself is 1 in two of the three cases."""
    values = discriminator_health(torch.ones(4) + offset, -torch.ones(4) + offset, LeCam(0.9))
    assert values["gan/accuracy"].item() == accuracy


def test_a_discriminator_that_separates_ever_further_opens_the_gap_at_a_known_step() -> None:
    """Means 20 and -20 at decay 0.9: the gap after n updates is 40 (1 - 0.9^n), above 10 from the third on."""
    health = Health(HealthConfig(rules={"gap": HealthRule(metric="gan/lecam_gap", above=10.0, patience=2)}))
    lecam, found = LeCam(0.9), []
    for step in range(1, 8):
        lecam.update(torch.tensor(20.0), torch.tensor(-20.0))
        values = discriminator_health(torch.full((2,), 20.0), torch.full((2,), -20.0), lecam)
        found += health.observe(step, {name: value.item() for name, value in values.items()})
    assert [(finding.step, finding.since) for finding in found] == [(4, 3)]
