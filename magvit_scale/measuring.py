"""How clips are measured by a protocol: its frozen networks, and what a batch of clips adds to a tally.

Composes `metrics` with the perceptual distance of `vqgan`; which clips they are and where they come from is the
program's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from magvit_scale.metrics.c3d import NUM_CLASSES, load_classifier
from magvit_scale.metrics.frechet import FeatureStatistics, RandomFeatures
from magvit_scale.metrics.i3d import NUM_LOGITS, load_i3d
from magvit_scale.metrics.inception_score import InceptionScores
from magvit_scale.metrics.preparation import prepare, quantise
from magvit_scale.metrics.protocol import Protocol
from magvit_scale.metrics.reconstruction import psnr, ssim
from magvit_scale.metrics.results import RANDOM
from magvit_scale.metrics.selection import RealClip
from magvit_scale.metrics.tally import Tally
from magvit_scale.metrics.tokens import used_and_perplexity
from magvit_scale.vqgan.perceptual import PerceptualLoss
from magvit_scale.weights import expected_sha256

LPIPS_WEIGHTS = "vgg16-in1k-v1"
SIGNAL_SCORES = ("psnr", "ssim", "lpips")
"""Of a clip against the real one, for tasks that are given a part of it."""


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The frozen networks of a protocol."""

    features: Callable[[Tensor], Tensor]
    """Prepared clips 'b 3 t s s' in [0, 1] -> 'b d'."""
    num_features: int
    """d."""
    classifier: Callable[[Tensor], Tensor] | None
    """Clips 'b 3 t h w' in [0, 1] -> 'b k' logits; null where the protocol has no inception score."""
    num_classes: int
    """k."""
    perceptual: Callable[[Tensor, Tensor], Tensor] | None
    """Two sets of clips -> scalar mean distance; null where no task of the protocol is scored by it."""
    weights: dict[str, str]
    """sha256 of each network's file, or `random`; see `Result`."""

    @property
    def suffix(self) -> str:
        """Of the names of the figures that the networks decide: nobody shall take an untrained one's for FVD."""
        return f"_{RANDOM}" if RANDOM in self.weights.values() else ""


def load_networks(protocol: Protocol, kind: Literal["protocol", "random"], device: torch.device) -> Networks:
    """Loads what a protocol measures with.

    Args:
        protocol: names the networks.
        kind: `random` takes untrained ones in their place, comparable with no paper.
        device: where they go.

    Raises:
        Refusal: a file of weights is missing or another one.
    """
    is_scored = any(is_given_pixels(task) for task in protocol.tasks)
    if kind == "random" or protocol.feature_network == "random":
        return _untrained(protocol, is_scored, device)
    files: dict[str, str] = {"feature_network": protocol.feature_network}
    files |= {"classifier": protocol.classifier} if protocol.classifier else {}
    files |= {"perceptual": LPIPS_WEIGHTS} if is_scored else {}
    i3d = load_i3d(protocol.feature_network).to(device)
    return Networks(
        features=lambda clip: i3d(2 * clip - 1),
        num_features=NUM_LOGITS,
        classifier=load_classifier(protocol.classifier).to(device) if protocol.classifier else None,
        num_classes=NUM_CLASSES,
        perceptual=PerceptualLoss("lpips_vgg").to(device) if is_scored else None,
        weights={role: str(expected_sha256(name)) for role, name in files.items()},
    )


def _untrained(protocol: Protocol, is_scored: bool, device: torch.device) -> Networks:
    features, has_score = RandomFeatures().to(device), protocol.inception_score is not None
    roles = {"feature_network": True, "classifier": has_score, "perceptual": is_scored}
    return Networks(
        features=features,
        num_features=features.num_features,
        classifier=RandomFeatures(seed=1).to(device) if has_score else None,
        num_classes=features.num_features,
        perceptual=PerceptualLoss("random").to(device) if is_scored else None,
        weights={role: RANDOM for role, is_there in roles.items() if is_there},
    )


def is_given_pixels(task: str) -> bool:
    """Whether a task's clips can be held against the real ones: the class alone decides nothing of a picture."""
    return task != "CG"


def new_tally(protocol: Protocol, task: str, networks: Networks, codebook_size: int) -> Tally:
    """An empty tally of a task's clips, the same on every rank."""
    rule = protocol.inception_score
    return Tally(
        protocol.num_folds,
        protocol.num_generated,
        networks.num_features,
        scores=SIGNAL_SCORES if is_given_pixels(task) else (),
        inception=InceptionScores(networks.num_classes, rule.num_groups) if rule else None,
        codebook_size=codebook_size if task == "reconstruction" else 0,
    )


@torch.no_grad()
def add_clips(tally: Tally, protocol: Protocol, networks: Networks, places: Tensor, made: Tensor, real: Tensor) -> None:
    """Measures a batch.

    Args:
        tally: of `new_tally`, which grows.
        protocol: see `load_networks`.
        networks: see `load_networks`.
        places: 'b' int64, numbers of the clips among all of the protocol's.
        made: 'b 3 t h w' in [0, 1].
        real: the clips that they continue or repeat, as `made`.

    Raises:
        Refusal: features or scores that are not finite, or clips that a network cannot take.
    """
    tally.add_features(places, networks.features(prepare(made, protocol)))
    if tally.inception is not None and networks.classifier is not None and protocol.inception_score is not None:
        rule = protocol.inception_score
        groups = rule.groups_of(rule.shuffled(protocol.seed)[places.numpy()])
        tally.inception.update(networks.classifier(quantise(made, protocol.quantiser)), torch.from_numpy(groups))
    if tally.scores:
        assert networks.perceptual is not None
        lpips = [networks.perceptual(one[None], other[None]) for one, other in zip(real, made, strict=True)]
        scores = {"psnr": psnr(real, made), "ssim": ssim(real, made), "lpips": torch.stack(lpips)}
        tally.add_scores(places, scores)


def figures(
    tally: Tally,
    real: Sequence[FeatureStatistics],
    protocol: Protocol,
    task: str,
    networks: Networks,
    sources: Sequence[RealClip],
) -> dict[str, list[float]]:
    """`TASK/METRIC` -> a value of each fold, or one value; of a tally that has been joined.

    Args:
        tally: all clips of the task.
        real: statistics of the real set, fold by fold.
        protocol: see `load_networks`.
        task: of the tally.
        networks: with which it was filled.
        sources: the real clip of each of the tally's.
    """
    suffix, found = networks.suffix, {}
    found["frechet_random" if suffix else "fvd"] = tally.distances(real, protocol.divisor)
    if tally.inception is not None:
        found[f"inception_score{suffix}"] = tally.inception.scores().tolist()
    if tally.scores:
        groups = _same_source(sources) if protocol.psnr_best_of > 1 else None
        found |= {name: tally.score_of_folds(name, groups) for name in ("psnr", "ssim")}
        found[f"lpips{suffix}"] = tally.score_of_folds("lpips")
    if tally.codes is not None:
        use = used_and_perplexity(tally.codes)
        found |= {"codebook_used": [use[0]], "codebook_perplexity": [use[1]]}
    return {f"{task}/{name}": values for name, values in found.items()}


def _same_source(sources: Sequence[RealClip]) -> Tensor:
    """'n' int64: equal numbers for clips of the same real one."""
    numbers: dict[RealClip, int] = {}
    return torch.tensor([numbers.setdefault(source, len(numbers)) for source in sources])
