"""Our metrics beside other people's implementations of them, on the same numbers."""

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.image.fid import FrechetInceptionDistance

from magvit_scale.metrics.frechet import FeatureStatistics, frechet_distance
from magvit_scale.metrics.inception_score import InceptionScores
from magvit_scale.metrics.protocol import InceptionScoreRule
from magvit_scale.metrics.reconstruction import LUMA, psnr, ssim


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def feature_sets(num_clips: int, num_features: int = 24) -> tuple[Tensor, Tensor]:
    mixing = draw(num_features, num_features, seed=9)
    return draw(num_clips, num_features) @ mixing, draw(num_clips + 5, num_features, seed=1) @ mixing.T + 0.3


def statistics_of(features: Tensor) -> FeatureStatistics:
    statistics = FeatureStatistics(features.shape[1])
    for batch in features.split(7):
        statistics.update(batch)
    return statistics


@pytest.mark.parametrize("num_clips", [200, 12])  # the second has covariances without full rank
def test_frechet_distance_is_torch_fidelitys(num_clips: int) -> None:
    first, second = map(statistics_of, feature_sets(num_clips))
    pair = [{"mu": part.mean.numpy(), "sigma": part.covariance().numpy()} for part in (first, second)]
    theirs = fid_statistics_to_metric(*pair, verbose=False)["frechet_inception_distance"]
    # Theirs takes roots of rounding noise where there is no full rank.
    assert frechet_distance(first, second) == pytest.approx(theirs, rel=1e-9 if num_clips == 200 else 1e-5)


def test_frechet_distance_is_that_of_torchmetrics() -> None:
    class Identity(nn.Module):
        num_features = 24

        def forward(self, features: Tensor) -> Tensor:
            return features.flatten(1)[:, :24]

    real, fake = feature_sets(200)
    theirs = FrechetInceptionDistance(feature=Identity(), normalize=True, input_img_size=(1, 4, 6)).set_dtype(
        torch.float64
    )
    for is_real, features in ((True, real), (False, fake)):
        theirs.update(rearrange(features, "n (h w) -> n 1 h w", h=4), real=is_real)
    assert frechet_distance(statistics_of(real), statistics_of(fake)) == pytest.approx(
        theirs.compute().item(), rel=1e-6
    )


def test_inception_score_is_torch_fidelitys_over_ten_splits() -> None:
    logits = draw(205, 30, seed=2) * 8
    rule = InceptionScoreRule(num_samples=205, num_splits=10, num_repeats=1)
    ours = InceptionScores(30, rule.num_groups)
    groups = torch.from_numpy(rule.groups_of(torch.arange(205).numpy()))
    for part in torch.arange(205).split(16):
        ours.update(logits[part], groups[part])
    theirs = isc_features_to_metric(logits, splits=10, shuffle=False)
    expected = (theirs["inception_score_mean"], theirs["inception_score_std"])
    assert ours.result() == pytest.approx(expected, rel=1e-12)


def test_psnr_is_the_mean_over_frames_of_that_of_torchmetrics() -> None:
    real = draw(2, 3, 4, 24, 20)
    made = (real + 0.1 * draw(2, 3, 4, 24, 20, seed=3)).clamp(0, 1)
    frames = [rearrange(clip, "b c t h w -> (b t) c h w") for clip in (made, real)]
    theirs = peak_signal_noise_ratio(*frames, data_range=1.0, reduction="none", dim=(1, 2, 3))
    assert psnr(real, made).tolist() == pytest.approx(theirs.reshape(2, 4).mean(1).tolist(), rel=1e-6)


def test_ssim_is_that_of_torchmetrics_on_the_luma() -> None:
    real = draw(2, 3, 4, 24, 20)
    made = (real + 0.3 * draw(2, 3, 4, 24, 20, seed=3)).clamp(0, 1)
    weights = torch.tensor(LUMA, dtype=torch.float64)
    luma = [torch.einsum("bcthw,c->bthw", clip, weights).flatten(0, 1).unsqueeze(1) for clip in (made, real)]
    _, everywhere = structural_similarity_index_measure(*luma, data_range=1.0, return_full_image=True)
    theirs = everywhere[..., 5:-5, 5:-5]  # where the window lies inside of the frame; theirs also mirrors the border
    assert ssim(real, made).tolist() == pytest.approx(theirs.reshape(2, -1).mean(1).tolist(), rel=1e-6)
