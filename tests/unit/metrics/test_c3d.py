"""The classifier of the inception score: its structure, what it sees and its numbers, on random weights."""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.testing import assert_close

from magvit_scale.config import Refusal
from magvit_scale.metrics import c3d as module
from magvit_scale.metrics.c3d import C3D, ScriptedC3D, load_classifier
from magvit_scale.weights import WEIGHTS, pin

Arrays = dict[str, NDArray[Any]]
HIDDEN = 6


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 32nd of the channels; the published width is tested without numbers."""
    widths = {name: width // 32 for name, width in module.WIDTHS.items()}
    monkeypatch.setattr(module, "WIDTHS", widths)
    monkeypatch.setattr(module, "HIDDEN_SIZE", HIDDEN)


def random_arrays() -> Arrays:
    """Arrays under Chainer's names, in the order of the narrow network."""
    random = np.random.default_rng(0)
    arrays: Arrays = {}
    for name, tensor in C3D().state_dict().items():
        if name != "mean":
            layer, kind = name.split(".")
            values = random.standard_normal(tensor.shape, dtype=np.float32) / np.sqrt(tensor[0].numel() / 2)
            arrays[f"{layer}/{'W' if kind == 'weight' else 'b'}"] = values
    return arrays


def random_mean(height: int = 128, width: int = 171) -> NDArray[Any]:
    return np.random.default_rng(1).uniform(80, 110, (3, 16, height, width)).astype(np.float32)


def write(folder: Path, arrays: Mapping[str, NDArray[Any]], mean: NDArray[Any]) -> tuple[Path, Path]:
    paths = folder / WEIGHTS["c3d-chainer"].file, folder / WEIGHTS["c3d-chainer-mean"].file
    np.savez(paths[0], **arrays)
    np.savez(paths[1], mean=mean)
    return paths


def test_it_has_the_shapes_of_the_published_network() -> None:
    with torch.device("meta"):
        network = C3D()
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert shapes["conv1a.weight"] == (64, 3, 3, 3, 3)
    assert shapes["conv5b.weight"] == (512, 512, 3, 3, 3)
    assert shapes["fc6.weight"] == (4096, 8192)
    assert shapes["mean"] == (3, 16, 112, 112)
    convolutions = [(3, 64), (64, 128), (128, 256), (256, 256), (256, 512), *[(512, 512)] * 3]
    dense = [(8192, 4096), (4096, 4096), (4096, 101)]
    expected = sum(27 * i * o + o for i, o in convolutions) + sum(i * o + o for i, o in dense)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected == 78_409_573
    assert network(torch.empty(2, 3, 16, 128, 128, device="meta")).shape == (2, 101)


def test_it_sees_blue_green_red_from_corner_to_corner_less_the_mean(narrow: None, tmp_path: Path) -> None:
    mean = random_mean()
    network = C3D.from_files(*write(tmp_path, random_arrays(), mean))
    clip = torch.rand(2, 3, 16, 40, 29)
    seen = network.prepare(clip) + torch.from_numpy(mean[:, :, 8:120, 8:120])
    assert_close(seen[:, 0, :, 0, 0], clip[:, 2, :, 0, 0] * 255)
    assert_close(seen[:, 1, :, -1, -1], clip[:, 1, :, -1, -1] * 255)
    assert_close(seen[:, 2, :, 0, -1], clip[:, 0, :, 0, -1] * 255)
    # Row 37 of 112 lies at 37 * 39 / 111 = 13 exactly; column 1 at 28 / 111 of the way from 0 to 1.
    between = clip[:, 2, :, 13, 0].lerp(clip[:, 2, :, 13, 1], 28 / 111)
    assert_close(seen[:, 0, :, 37, 1], between * 255, rtol=1e-4, atol=1e-3)


def test_a_clip_of_its_own_size_is_not_resized(narrow: None) -> None:
    clip = torch.rand(1, 3, 16, 112, 112)
    assert_close(C3D().prepare(clip), clip.flip(1) * 255, rtol=0, atol=0)


def test_a_loaded_network_computes_what_the_names_of_its_file_say(narrow: None, tmp_path: Path) -> None:
    arrays = random_arrays()
    network = C3D.from_files(*write(tmp_path, arrays, random_mean(120, 120)))
    clip = torch.rand(2, 3, 16, 20, 30, generator=torch.Generator().manual_seed(0))
    expected = _expected(network.prepare(clip).double(), arrays).float()
    assert_close(network(clip), expected, rtol=1e-4, atol=1e-3)
    assert expected.std() > 1


def _expected(x: Tensor, arrays: Arrays) -> Tensor:
    tensors = {name: torch.from_numpy(array).double() for name, array in arrays.items()}
    for name in ("conv1a", "conv2a", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b"):
        x = F.conv3d(x, tensors[f"{name}/W"], tensors[f"{name}/b"], padding=1).clamp(min=0)
        if name == "conv5b":
            x = F.pad(x, (0, 1, 0, 1))
        if name not in ("conv3a", "conv4a", "conv5a"):
            frames = 1 if name == "conv1a" else 2
            x = F.max_pool3d(x, (frames, 2, 2))
    x = x.reshape(len(x), -1)
    for name in ("fc6", "fc7"):
        x = (x @ tensors[f"{name}/W"].T + tensors[f"{name}/b"]).clamp(min=0)
    return x @ tensors["fc8/W"].T + tensors["fc8/b"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"conv3b/b": None}, "conv3b.bias: found none"),
        ({"more/W": np.zeros(2)}, r"more.weight: found \(2,\), expected none"),
        ({"fc8/b": np.zeros(487)}, r"fc8.bias: found \(487,\), expected \(101,\)"),
        ({"fc8/b": np.array([{}])}, "allow_pickle"),
    ],
)
def test_other_weights_are_refused(narrow: None, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    arrays = {name: array for name, array in {**random_arrays(), **change}.items() if array is not None}
    with pytest.raises(Refusal, match=words):
        C3D.from_files(*write(tmp_path, arrays, random_mean()))


@pytest.mark.parametrize("mean", [random_mean(112, 112), random_mean()[:, 0], random_mean()[:, :8]])
def test_another_mean_is_refused(narrow: None, tmp_path: Path, mean: NDArray[Any]) -> None:
    with pytest.raises(Refusal, match=r"mean2.npz: shape .* expected \(3, 16, h, w\) with 120 px or more"):
        C3D.from_files(*write(tmp_path, random_arrays(), mean))


@pytest.mark.parametrize("content", [b"", b"nothing", b"PK\x03\x04"])
def test_what_is_no_npz_is_refused(narrow: None, tmp_path: Path, content: bytes) -> None:
    weights, mean = write(tmp_path, random_arrays(), random_mean())
    weights.write_bytes(content)
    with pytest.raises(Refusal, match="expected an npz of plain arrays"):
        C3D.from_files(weights, mean)
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(Refusal, match="expected an npz of plain arrays"):
        C3D.from_files(tmp_path / "array.npy", mean)


def test_it_is_found_by_its_names_once_both_files_are_pinned(
    narrow: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAGVIT_WEIGHTS", str(tmp_path))
    paths = write(tmp_path, random_arrays(), random_mean())
    pin("c3d-chainer", hashlib.sha256(paths[0].read_bytes()).hexdigest())
    with pytest.raises(Refusal, match=r"c3d-chainer-mean: .*mean2.npz is not pinned"):
        load_classifier("c3d-chainer")
    pin("c3d-chainer-mean", hashlib.sha256(paths[1].read_bytes()).hexdigest())
    network = load_classifier("c3d-chainer")
    assert isinstance(network, nn.Module)
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_other_clips_are_refused(narrow: None) -> None:
    network = C3D()
    for shape in ((1, 3, 15, 112, 112), (1, 16, 3, 112, 112), (3, 16, 112, 112)):
        with pytest.raises(Refusal, match=r"expected \(b, 3, 16, h, w\)"):
            network(torch.zeros(shape))
    with pytest.raises(Refusal, match=r"torch.uint8, expected torch.float32 in \[0, 1\]"):
        network(torch.zeros(1, 3, 16, 112, 112, dtype=torch.uint8))


class _Script(nn.Module):
    """Probabilities of two classes that say what it was given: the first one the clip's mean on 0..255, as a share."""

    def forward(self, clip: Tensor) -> Tensor:
        share = clip.mean(dim=(1, 2, 3, 4)) / 255
        return torch.stack([share, 1 - share], dim=1)


def test_the_scripted_network_gets_grey_levels_and_gives_logarithms(tmp_path: Path) -> None:
    torch.jit.script(_Script()).save(tmp_path / "c3d_ucf101.pt")
    sha = hashlib.sha256((tmp_path / "c3d_ucf101.pt").read_bytes()).hexdigest()
    network = ScriptedC3D.from_file(tmp_path / "c3d_ucf101.pt", sha)
    clips = torch.stack([torch.full((3, 16, 8, 8), 0.25), torch.ones(3, 16, 8, 8)])
    torch.testing.assert_close(network(clips).exp(), torch.tensor([[0.25, 0.75], [1, 0]]))
    assert network(clips)[1, 1] == -math.inf
    with pytest.raises(Refusal, match=r"expected \(b, 3, 16, h, w\)"):
        network(clips[:, :, :9])


def test_another_script_than_the_pinned_one_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAGVIT_WEIGHTS", str(tmp_path))
    torch.jit.script(_Script()).save(tmp_path / "c3d_ucf101.pt")
    pin("c3d-ts", "00")
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(Refusal, match=r"c3d-ts: .* has sha256 .* expected sha256 00"):
        load_classifier("c3d-ts")
    with pytest.raises(Refusal, match="expected 00 of c3d-ts; a TorchScript is code and is not run"):
        ScriptedC3D.from_file(tmp_path / "c3d_ucf101.pt", "00")
