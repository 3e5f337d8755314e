"""Files in the format of the published weights, filled with random numbers, in a folder where they are looked for."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models import resnet50

from magvit_scale.weights import FOLDER_VARIABLE, WEIGHTS

VGG16_WIDTHS = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256, 17: 512, 19: 512, 21: 512, 24: 512, 26: 512,
                28: 512}  # fmt: skip


@contextmanager
def weights_of_random_numbers(folder: Path) -> Iterator[Path]:
    """Writes both files into `folder`; inside the context they count as the published ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER_VARIABLE, str(folder))
        for name, tensors in (("vgg16-in1k-v1", vgg16_tensors()), ("resnet50-v1", resnet50_tensors())):
            path = folder / WEIGHTS[name].file
            torch.save(tensors, path)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            patch.setitem(WEIGHTS, name, replace(WEIGHTS[name], sha256=digest))
        yield folder


def vgg16_tensors() -> dict[str, Tensor]:
    """The trunk with He's deviation; the head, which nobody reads, has the right shapes in one number each."""
    generator, tensors, fan_in = torch.Generator().manual_seed(0), {}, 3
    for layer, width in VGG16_WIDTHS.items():
        weight = torch.randn(width, fan_in, 3, 3, generator=generator) * (2 / (9 * fan_in)) ** 0.5
        tensors[f"features.{layer}.weight"] = weight
        tensors[f"features.{layer}.bias"] = 0.1 * torch.randn(width, generator=generator)
        fan_in = width
    for layer, shape in ((0, (4096, 25088)), (3, (4096, 4096)), (6, (1000, 4096))):
        tensors[f"classifier.{layer}.weight"] = torch.zeros(1).expand(*shape)
        tensors[f"classifier.{layer}.bias"] = torch.zeros(1).expand(shape[0])
    return tensors


def resnet50_tensors() -> dict[str, Tensor]:
    """Every tensor, with batch statistics that differ from those of a fresh network, and branches of a size at which
    16 of them don't make the logits astronomical.
    """
    generator, tensors = torch.Generator().manual_seed(1), resnet50(weights=None).state_dict()
    for name, tensor in tensors.items():
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim > 1:
            tensors[name] = noise * (2 / tensor[0].numel()) ** 0.5
        elif name.endswith(("running_var", "weight")):
            tensors[name] = (0.5 + noise.abs()) * (0.2 if "bn3" in name else 1)
        elif name.endswith(("running_mean", "bias")):
            tensors[name] = 0.1 * noise
    return tensors
