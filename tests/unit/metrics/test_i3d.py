"""The I3D of FVD: its structure, its padding and its numbers, on random weights in the published containers."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from magvit_scale.config import Refusal
from magvit_scale.metrics import i3d as module
from magvit_scale.metrics.i3d import I3D, ScriptedI3D, load_i3d
from magvit_scale.weights import WEIGHTS, pin

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def published() -> State:
    """Random tensors under the names and in the shapes of i3d_pretrained_400.pt."""
    generator = torch.Generator().manual_seed(0)
    state: State = {}
    for name, tensor in I3D().state_dict().items():
        published = name.removeprefix("layers.")
        if published.endswith("conv3d.weight"):
            state[published] = torch.randn(tensor.shape, generator=generator) * math.sqrt(2 / tensor[0].numel())
        elif published.endswith("running_var"):
            # Small ones among them, where an epsilon of 1e-5 in place of 1e-3 would show.
            state[published] = torch.rand(tensor.shape, generator=generator) + 0.01
        else:
            state[published] = torch.randn(tensor.shape, generator=generator) / 10
        if published.endswith(".bn.bias"):
            state[published.replace("bias", "weight")] = torch.ones(tensor.shape)
            state[published.replace("bias", "num_batches_tracked")] = torch.tensor(7)
    return state


@pytest.fixture
def file(published: State, tmp_path: Path) -> Path:
    torch.save(published, tmp_path / "i3d_pretrained_400.pt")
    return tmp_path / "i3d_pretrained_400.pt"


def test_it_has_the_numbers_of_the_published_network() -> None:
    network = I3D()
    assert sum(tensor.numel() for tensor in network.state_dict().values()) == 12_704_544
    assert sum(isinstance(layer, nn.Conv3d) for layer in network.modules()) == 58
    norms = [layer for name, layer in network.named_modules() if name.endswith(".bn")]
    assert len(norms) == 57
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(("num_frames", "positions"), [(9, 1), (16, 1), (17, 2), (24, 2), (25, 3)])
def test_every_eighth_frame_begins_a_position_and_the_last_pool_joins_two(num_frames: int, positions: int) -> None:
    network = I3D().to("meta")
    clip = torch.empty(2, 3, num_frames, 224, 224, device="meta")
    assert network.logits_over_time(clip).shape == (2, 400, positions)
    assert network(clip).shape == (2, 400)


@pytest.mark.parametrize(
    ("axis", "kernel", "expected"),
    [
        (2, (3, 1, 1), {4: [6, 7], 5: [3, 9, 9]}),
        (3, (1, 3, 1), {4: [6, 7], 5: [3, 9, 9]}),
        (4, (1, 1, 3), {4: [6, 7], 5: [3, 9, 9]}),
        (2, (7, 1, 1), {4: [10, 10], 5: [10, 15, 14], 6: [15, 21, 18]}),
    ],
)
def test_an_odd_rest_of_padding_goes_to_the_end(
    axis: int, kernel: tuple[int, int, int], expected: dict[int, list[int]]
) -> None:
    """1, 2, 3, ... summed by a kernel of ones at stride 2, computed by hand."""
    unit = module._Unit(1, 1, kernel, stride=2)
    unit.conv3d.weight.data.fill_(1)
    assert unit.bn is not None
    unit.bn.bias.data.fill_(0.5)
    for size, sums in expected.items():
        line = torch.arange(1.0, size + 1).reshape([size if i == axis else 1 for i in range(5)])
        assert_close(unit(line).flatten(), torch.tensor(sums) / math.sqrt(1.001) + 0.5)


@pytest.mark.parametrize(
    ("kernel", "size", "maxima"),
    [(3, 4, [3.0, 4.0]), (3, 5, [2.0, 4.0, 5.0]), (2, 5, [2.0, 4.0, 5.0]), (2, 4, [2.0, 4.0])],
)
def test_pools_pad_at_the_end_too(kernel: int, size: int, maxima: list[float]) -> None:
    line = torch.arange(1.0, size + 1).reshape(1, 1, size, 1, 1)
    assert module._MaxPool((kernel, 1, 1), (2, 1, 1))(line).flatten().tolist() == maxima


def test_a_loaded_network_computes_what_the_names_of_its_file_say(published: State, file: Path) -> None:
    network = I3D.from_file(file).double()  # 57 layers of random weights magnify what float32 rounds
    clip = torch.rand(1, 3, 9, 45, 38, generator=torch.Generator().manual_seed(1)).double() * 2 - 1
    expected = _trunk(clip, {name: tensor.double() for name, tensor in published.items()})
    assert_close(network.layers(clip), expected, rtol=1e-9, atol=1e-9)
    assert expected.std() > 0.1


def test_the_feature_is_the_mean_of_the_logits_over_time_without_a_rectifier(published: State, file: Path) -> None:
    network = I3D.from_file(file)
    trunk = torch.rand(1, 1024, 3, 7, 7)
    network.layers = nn.Sequential(_Constant(trunk))
    clip = torch.zeros(1, 3, 17, 224, 224)
    pooled = torch.stack([trunk[:, :, i : i + 2].mean(dim=(2, 3, 4)) for i in range(2)])
    logits = pooled @ published["logits.conv3d.weight"].flatten(1).T + published["logits.conv3d.bias"]
    assert_close(network.logits_over_time(clip), logits.permute(1, 2, 0), rtol=1e-4, atol=1e-5)
    assert_close(network(clip), logits.mean(dim=0), rtol=1e-4, atol=1e-5)
    assert (logits < 0).any()


class _Constant(nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"  # type: ignore[attr-defined]
        return self.value


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"Mixed_3b.b0.bn.weight": torch.full((64,), 1.5)}, "Mixed_3b.b0.bn.weight is not all ones"),
        ({"Mixed_3b.b0.bn.bias": None}, "layers.Mixed_3b.b0.bn.bias: found none, expected"),
        ({"more": torch.zeros(2)}, r"layers.more: found \(2,\), expected none"),
        ({"logits.conv3d.bias": torch.zeros(600)}, r"logits.conv3d.bias: found \(600,\), expected \(400,\)"),
    ],
)
def test_other_weights_are_refused(
    published: State, tmp_path: Path, change: Mapping[str, Tensor | None], words: str
) -> None:
    changed = {name: tensor for name, tensor in {**published, **change}.items() if tensor is not None}
    torch.save(changed, tmp_path / "file.pt")
    with pytest.raises(Refusal, match=words):
        I3D.from_file(tmp_path / "file.pt")


class _Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('executed')",)


def test_what_is_no_state_dict_is_refused_and_not_executed(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch.save({"Mixed_3b": _Trap()}, path)
    with pytest.raises(Refusal, match=r"expected the state dict i3d_pretrained_400.pt of i3d-sd"):
        I3D.from_file(path)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(Refusal, match="holds a list, expected the state dict"):
        I3D.from_file(path)
    for content in (b"", b"nothing"):
        path.write_bytes(content)
        with pytest.raises(Refusal, match="expected the state dict"):
            I3D.from_file(path)
    torch.jit.save(torch.jit.script(_Script()), str(path))
    with pytest.raises(Refusal, match="expected the state dict"):
        I3D.from_file(path)


class _Script(nn.Module):
    """Tells by its output how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((400,), 2.0))

    def forward(self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False) -> Tensor:
        code = 4 * int(rescale) + 2 * int(resize) + int(return_features)
        return x.mean(dim=(1, 2, 3, 4)).unsqueeze(1) * self.scale + code


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAGVIT_WEIGHTS", str(tmp_path))
    path = tmp_path / WEIGHTS["i3d-ts"].file
    torch.jit.save(torch.jit.script(_Script()), str(path))
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(WEIGHTS, "i3d-ts", replace(WEIGHTS["i3d-ts"], sha256=found))
    return path


def test_the_script_gives_logits_of_the_clip_as_it_is(script: Path) -> None:
    network = load_i3d("i3d-ts")
    assert isinstance(network, ScriptedI3D)
    clip = torch.stack([torch.full((3, 9, 224, 224), value) for value in (0.5, -1.0)])
    assert_close(network(clip), torch.tensor([[2.0], [-1.0]]).expand(2, 400))
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_another_script_is_not_even_opened(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = script.read_bytes()
    script.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(Refusal, match=f"expected {WEIGHTS['i3d-ts'].sha256} of i3d-ts; a TorchScript is code"):
        ScriptedI3D.from_file(script)


def test_the_state_dict_is_found_by_its_name_once_it_is_pinned(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAGVIT_WEIGHTS", str(file.parent))
    with pytest.raises(Refusal, match="is not pinned"):
        load_i3d("i3d-sd")
    pin("i3d-sd", hashlib.sha256(file.read_bytes()).hexdigest())
    assert isinstance(load_i3d("i3d-sd"), I3D)


@pytest.mark.parametrize(
    ("clip", "words"),
    [
        (torch.zeros(1, 3, 8, 224, 224), r"\(1, 3, 8, 224, 224\), expected .* t >= 9"),
        (torch.zeros(1, 3, 9, 64, 224), r"\(1, 3, 9, 64, 224\), expected"),
        (torch.zeros(1, 9, 3, 224, 224), r"\(1, 9, 3, 224, 224\), expected"),
        (torch.zeros(3, 9, 224, 224), r"\(3, 9, 224, 224\), expected"),
        (torch.zeros(1, 3, 9, 224, 224, dtype=torch.uint8), "torch.uint8, expected torch.float32"),
    ],
)
def test_other_clips_are_refused(clip: Tensor, words: str) -> None:
    for network in (I3D().to("meta"), ScriptedI3D(torch.jit.script(_Script()))):
        with pytest.raises(Refusal, match=words):
            network(clip)


def _trunk(x: Tensor, state: State) -> Tensor:
    """The network up to its last pool, read off the names of the file, in the order of the publication."""
    x = _convolve(x, state, "Conv3d_1a_7x7", 2)
    x = _pool(x, (1, 3, 3), (1, 2, 2))
    x = _convolve(_convolve(x, state, "Conv3d_2b_1x1"), state, "Conv3d_2c_3x3")
    x = _pool(x, (1, 3, 3), (1, 2, 2))
    for block in ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c"):
        if block == "4b":
            x = _pool(x, (3, 3, 3), (2, 2, 2))
        if block == "5b":
            x = _pool(x, (2, 2, 2), (2, 2, 2))
        name = f"Mixed_{block}."
        branches = [_convolve(x, state, name + "b0")]
        branches += [_convolve(_convolve(x, state, f"{name}b{i}a"), state, f"{name}b{i}b") for i in (1, 2)]
        branches += [_convolve(_pool(x, (3, 3, 3), (1, 1, 1)), state, name + "b3b")]
        x = torch.cat(branches, dim=1)
    return x


def _convolve(x: Tensor, state: State, name: str, stride: int = 1) -> Tensor:
    weight = state[f"{name}.conv3d.weight"]
    x = F.conv3d(_same(x, weight.shape[2:], (stride,) * 3, 0.0), weight, stride=stride)
    mean, variance, shift = (
        state[f"{name}.bn.{kind}"].reshape(-1, 1, 1, 1) for kind in ("running_mean", "running_var", "bias")
    )
    return ((x - mean) / (variance + 0.001).sqrt() + shift).clamp(min=0)


def _pool(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    return F.max_pool3d(_same(x, kernel, stride, -math.inf), kernel, stride)


def _same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], value: float) -> Tensor:
    """One axis at a time, by concatenation."""
    for axis, (length, step) in enumerate(zip(kernel, stride, strict=True), start=2):
        size = x.shape[axis]
        rest = max(length - step, 0) if size % step == 0 else max(length - size % step, 0)
        before, after = rest // 2, (rest + 1) // 2
        shape = list(x.shape)
        shape[axis] = before
        x = torch.cat([x.new_full(shape, value), x], dim=axis)
        shape = list(x.shape)
        shape[axis] = after
        x = torch.cat([x, x.new_full(shape, value)], dim=axis)
    return x
