"""What a protocol measures with: its networks by name, each in the form that it wants, and what batches add up to."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from magvit_scale import measuring
from magvit_scale.measuring import add_clips, figures, load_networks, new_tally
from magvit_scale.metrics.frechet import FeatureStatistics
from magvit_scale.metrics.protocol import InceptionScoreRule, Protocol, RealClips
from magvit_scale.metrics.protocols import PROTOCOLS
from magvit_scale.metrics.selection import RealClip

CPU = torch.device("cpu")


class Recorder(nn.Module):
    """A network that keeps what it was given."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.num_outputs, self.given = num_outputs, list[Tensor]()

    def forward(self, clip: Tensor) -> Tensor:
        self.given.append(clip)
        return clip.flatten(1)[:, : self.num_outputs]


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Names under which networks were asked for, and the networks."""
    asked: dict[str, Any] = {"i3d": Recorder(400), "c3d": Recorder(101)}

    def load(kind: str) -> Any:
        return lambda name: asked.update({f"{kind} name": name}) or asked[kind]

    monkeypatch.setattr(measuring, "load_i3d", load("i3d"))
    monkeypatch.setattr(measuring, "load_classifier", load("c3d"))
    monkeypatch.setattr(measuring, "PerceptualLoss", lambda kind: asked.update({"perceptual": kind}) or nn.Identity())
    monkeypatch.setattr(measuring, "expected_sha256", lambda name: f"hash of {name}")
    return asked


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("magvit-ucf101-cg", {"feature_network": "hash of i3d-ts", "classifier": "hash of c3d-chainer"}),
        ("magvit-bair-fp", {"feature_network": "hash of i3d-ts", "perceptual": "hash of vgg16-in1k-v1"}),
        ("stylegan-v-2048", {"feature_network": "hash of i3d-ts", "classifier": "hash of c3d-ts"}),
        ("magvit-recon", {"feature_network": "hash of i3d-ts", "classifier": "hash of c3d-chainer",
                          "perceptual": "hash of vgg16-in1k-v1"}),
    ],
)  # fmt: skip
def test_a_protocol_gets_its_networks_and_no_others(loaded: dict[str, Any], name: str, weights: dict[str, str]) -> None:
    networks = load_networks(PROTOCOLS[name], "protocol", CPU)
    assert networks.weights == weights
    assert networks.suffix == ""
    assert loaded["i3d name"] == "i3d-ts"
    assert loaded.get("c3d name") == PROTOCOLS[name].classifier
    assert loaded.get("perceptual") == ("lpips_vgg" if "perceptual" in weights else None)
    networks.features(torch.tensor([0.0, 0.5, 1.0]).reshape(1, 3))
    assert loaded["i3d"].given[0].tolist() == [[-1.0, 0.0, 1.0]]


def test_the_classifier_sees_the_quantised_clip_at_its_own_size(loaded: dict[str, Any]) -> None:
    protocol = replace(
        PROTOCOLS["stylegan-v-2048"],
        num_generated=2,
        inception_score=InceptionScoreRule(num_samples=2, num_splits=1, num_repeats=1),
    )
    networks = load_networks(protocol, "protocol", CPU)
    clips = torch.rand(2, 3, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    add_clips(new_tally(protocol, "CG", networks, 8), protocol, networks, torch.arange(2), clips, clips)
    assert torch.equal(loaded["c3d"].given[0], (clips * 255).round() / 255)
    assert loaded["i3d"].given[0].shape == (2, 3, 16, 224, 224)


def test_figures_are_named_by_their_task_and_the_best_of_a_videos_samples_counts() -> None:
    protocol = Protocol(
        name="toy", data_set="none", tasks=("FP",), real=RealClips(split="test", rule="even_windows", num_clips=4),
        num_generated=4, num_folds=1, num_frames=4, size_px=32, data_resize=(), feature_resize=(), quantiser="float",
        feature_network="random", divisor="n-1", psnr_best_of=2,
    )  # fmt: skip
    networks = load_networks(protocol, "protocol", CPU)
    assert networks.suffix == "_random"
    real = torch.full((4, 3, 4, 32, 32), 0.5)
    made = real + torch.tensor([0.1, 0.01, 0.001, 0.01]).reshape(4, 1, 1, 1, 1)
    tally = new_tally(protocol, "FP", networks, 8)
    add_clips(tally, protocol, networks, torch.arange(4), made, real)
    statistics = FeatureStatistics(networks.num_features)
    statistics.update(torch.rand(9, networks.num_features, generator=torch.Generator().manual_seed(0)))
    sources = [RealClip(0, 0), RealClip(0, 0), RealClip(1, 0), RealClip(1, 0)]
    found = figures(tally, [statistics], protocol, "FP", networks, sources)
    assert set(found) == {"FP/frechet_random", "FP/psnr", "FP/ssim", "FP/lpips_random"}
    # 20, 40 and 60, 40 dB: the better of each video.
    assert found["FP/psnr"] == pytest.approx([50.0], rel=1e-4)
    every = replace(protocol, psnr_best_of=1)
    assert figures(tally, [statistics], every, "FP", networks, sources)["FP/psnr"] == pytest.approx([40.0], rel=1e-4)
