"""Training against the official runs: four steps of both GAN networks, four of AdamW, the learning rates.

The steps go through our own step functions and real DeepSpeed engines (ZeRO 2, a world of one).
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from magvit_scale.commit.flax import transformer_leaves
from magvit_scale.commit.transformer import CommitTransformer, decayed_parameters
from magvit_scale.config import ClipsConfig, OptimConfig, RunConfig, TrainVQGANConfig, VQGANLossConfig
from magvit_scale.flax_tree import Leaf, Tree, tree_of
from magvit_scale.pretrained import shapes_of
from magvit_scale.training import distributed, engines
from magvit_scale.training.ema import ExponentialMovingAverage
from magvit_scale.training.ranks import Ranks
from magvit_scale.training.schedule import learning_rate
from magvit_scale.vqgan.autoencoder import VQGAN
from magvit_scale.vqgan.discriminator import Discriminator
from magvit_scale.vqgan.flax import discriminator_leaves, vqgan_leaves
from magvit_scale.vqgan.step import vqgan_step
from magvit_scale.vqgan_training import build_training
from tests.numerics.official import Agree, clip_of, imported, list_of, under

METRICS = {
    "loss/reconstruction": "reconstruction_loss",
    "loss/quantizer": "quantizer_loss",
    "loss/generator": "g_adversarial_loss",
    "loss/discriminator": "d_adversarial_loss",
    "loss/r1": "grad_penalty",
    "loss/lecam": "lecam_loss",
}
FOLLOWED = "absolute, a hundredth of one step at the largest learning rate (1e-4 a step)"


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    yield distributed.start()
    distributed.stop()


def gan_config(facts: dict[str, Any], batch_size: int, folder: Path) -> TrainVQGANConfig:
    """The official run's settings in our words; the networks come from the weights."""
    schedule, optimizer, gan = facts["lr_configs"], facts["optimizer"], facts["vqgan"]
    return TrainVQGANConfig(
        run=RunConfig(folder=str(folder), steps=schedule["steps_per_cycle"], global_batch_size=batch_size),
        clips=ClipsConfig(shards="-"),
        loss=VQGANLossConfig(
            perceptual="none",
            lecam_weight=facts["lecam_weight"],
            adversarial_weight=gan["g_adversarial_loss_weight"],
            r1_weight=gan["grad_penalty_cost"],
            ema_decay=facts["polyak_decay"],
        ),
        optim=OptimConfig(
            learning_rate=schedule["base_learning_rate"],
            betas=(optimizer["beta1"], optimizer["beta2"]),
            warmup_steps=schedule["warmup_steps"],
        ),
    )


def import_both(golden_folder: Path, folder: Path) -> tuple[VQGAN, Discriminator]:
    generator, judge = golden_folder / "vqgan3d_bair_mini.params-0.npz", golden_folder / "disc3d_bair.npz"
    vqgan = VQGAN.from_pretrained(imported("vqgan3d", generator, folder / "g", "model.padding=zeros")).train()
    return vqgan, Discriminator.from_pretrained(imported("discriminator3d", judge, folder / "d"))


def test_four_steps_of_both_networks(golden_folder, golden, golden_json, tmp_path, ranks, agree: Agree) -> None:
    arrays, facts = golden("vqgan_train_steps.npz"), golden_json("vqgan_train_steps.json")["config"]
    generator, discriminator = import_both(golden_folder, tmp_path)
    config = gan_config(facts, len(arrays["step0/video"]), tmp_path)
    training = build_training(config, ranks, generator, discriminator)
    average = ExponentialMovingAverage(training.generator, config.loss.ema_decay)
    averaged = copy.deepcopy(generator)
    followed: dict[str, list[Leaf]] = {
        "g_params": vqgan_leaves(generator),
        "d_params": discriminator_leaves(discriminator),
        "ema_params": vqgan_leaves(averaged),
    }
    # A bias before a norm of one channel per group has no gradient but rounding noise, of which Adam with beta1 = 0
    # makes whole steps of either sign, there as here.
    norms = golden_json("vqgan3d_bair_mini.json")["grad_l2_norm"]
    is_noise = {f"{kind}/{name}" for name, norm in norms.items() if norm < 1e-6 * max(norms.values())
                for kind in ("g_params", "ema_params")}  # fmt: skip
    assert len(is_noise) == 2
    for step in range(4):
        rate = learning_rate(step, config.run.steps, config.optim)
        reason = "it is float32 there"
        agree("training of the VQGAN", "learning rate", rate, arrays["lr"][step], tolerance=1e-10, reason=reason)
        for engine in (training.generator, training.discriminator):
            engine.set_learning_rate(rate)
        metrics = vqgan_step(training, [clip_of(arrays[f"step{step}/video"])], step)
        average.update()
        averaged.load_state_dict(distributed.gather(average.owned_slices(), shapes_of(averaged), ranks))
        official = under(arrays, f"step{step}")
        agree_on_metrics(config, training, metrics, official, agree)
        for kind, leaves in followed.items():
            agree_on_parameters(kind, leaves, official, is_noise, agree)


def agree_on_metrics(config: TrainVQGANConfig, training: Any, metrics: Any, official: Tree, agree: Agree) -> None:
    loss = config.loss
    weights = {"loss/generator": loss.adversarial_weight, "loss/r1": loss.r1_weight, "loss/lecam": loss.lecam_weight}
    reason = "float32, over several updates"
    close = {"tolerance": 1e-5, "relative": True, "reason": reason}
    for name, theirs in METRICS.items():
        found = weights.get(name, 1.0) * metrics[name].detach()
        agree("training of the VQGAN", name, found, official[f"metrics/{theirs}"], **close)
    agree("training of the VQGAN", "LeCam's mean, real", training.lecam.real_mean, official["lecam_ema_real"], **close)
    agree("training of the VQGAN", "LeCam's mean, fake", training.lecam.fake_mean, official["lecam_ema_fake"], **close)


def agree_on_parameters(kind: str, leaves: list[Leaf], official: Tree, is_noise: set[str], agree: Agree) -> None:
    tree, expected = tree_of(leaves), under(official, kind)
    names = [name for name in expected if f"{kind}/{name}" not in is_noise]
    assert len(names) > 10
    worst = np.array([np.abs(tree[name] - expected[name]).max() for name in names])
    agree("training of the VQGAN", f"{kind} after each step", worst, 0 * worst, tolerance=1e-6, reason=FOLLOWED)


class GivenGradient(nn.Module):
    """A loss whose gradient is what it is told."""

    def __init__(self, model: CommitTransformer, gradients: Tree) -> None:
        super().__init__()
        self.model = model
        leaves = transformer_leaves(model)
        self.pairs = [(leaf.parameter, leaf.to_torch(gradients[leaf.path])) for leaf in leaves]

    def forward(self, scale: float) -> torch.Tensor:
        return torch.stack([(parameter * gradient).sum() for parameter, gradient in self.pairs]).sum() * scale


def test_four_steps_of_adamw(golden_folder, golden, golden_json, tmp_path, ranks, agree: Agree) -> None:
    arrays, facts = golden("maskgvt_optimizer.npz"), golden_json("maskgvt_optimizer.json")
    bert = golden_json("bert_ucf101.json")
    switches = (
        f"model.latent_shape={list_of(bert['config']['transformer']['latent_shape'])}",
        f"model.codebook_size={bert['codebook_size']}",
        f"model.num_classes={bert['num_classes_incl_uncond'] - 1}",
        "model.multi_task=false",
    )
    folder = imported("transformer", golden_folder / "bert_ucf101.npz", tmp_path / "model", *switches)
    model = CommitTransformer.from_pretrained(folder)
    schedule, optimizer = facts["lr_configs"], facts["config_optimizer"]
    optim = OptimConfig(
        learning_rate=schedule["base_learning_rate"],
        betas=(optimizer["beta1"], optimizer["beta2"]),
        weight_decay=optimizer["weight_decay"],
        warmup_steps=schedule["warmup_steps"],
        gradient_clipping=facts["max_grad_norm"],
    )
    run = RunConfig(folder=str(tmp_path), steps=schedule["steps_per_cycle"], global_batch_size=1)
    given = GivenGradient(model, under(golden("bert_ucf101.npz"), "grad"))
    engine = engines.build_engine("transformer", given, decayed_parameters(model), run, optim, ranks)
    component = "training of the transformer"
    for step, scale in enumerate(arrays["grad_scales"].tolist()):
        rate = learning_rate(step, run.steps, optim)
        reason = "it is float32 there"
        agree(component, "learning rate", rate, arrays["lr"][step], tolerance=1e-9, reason=reason)
        engine.set_learning_rate(rate)
        engine.backward(engine(scale))
        engine.step()
        expected, tree = under(arrays, f"step{step}/params"), tree_of(transformer_leaves(model))
        worst = np.array([np.abs(tree[name] - array).max() for name, array in expected.items()])
        reason = "absolute, a thousandth of one step at the largest learning rate (1e-3 a step)"
        what = "AdamW with decay on kernels, clipped: parameters after each step"
        agree(component, what, worst, 0 * worst, tolerance=1e-6, reason=reason)
