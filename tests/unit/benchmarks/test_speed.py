"""The speed benchmark at toy size: what it counts, how a figure comes of its rounds, what it calls moved."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from benchmarks.speed import __main__ as program
from benchmarks.speed import peers
from benchmarks.speed.__main__ import Found, main, run
from benchmarks.speed.ahead import compile_ahead
from benchmarks.speed.ceilings import Kernel, Turn, build_kernels, convolution_flops
from benchmarks.speed.counting import Needs, count_needs
from benchmarks.speed.figures import Built, Round, Workload, difference, measure, summarise
from benchmarks.speed.plan import Plan, Setting, SpeedConfig
from benchmarks.speed.record import ceilings, what_moved
from benchmarks.speed.targets import NOT_MEASURED, targets
from benchmarks.speed.timing import Timed, repeats_for
from magvit_scale.config import ComputeConfig, DiscriminatorConfig, TransformerConfig, VQGANConfig
from magvit_scale.training.flops import count_flops
from tests import tiny_models

REPOSITORY = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")
TOY = Plan(
    VQGANConfig(
        base_channels=8, channel_multipliers=(1, 2), num_res_blocks=1, temporal_downsample=(True,), embedding_dim=4,
        codebook_size=16, num_groups=4,
    ),
    DiscriminatorConfig(ndim=3, base_channels=8, channel_multipliers=(2,)),
    TransformerConfig(num_layers=1, hidden_size=16, mlp_dim=24, num_heads=4, codebook_size=16, num_classes=3),
    clip=(4, 16, 16), small_clip=(4, 16, 16), clips=1, sequences=2, samples=2, trained_clips=2, ceilings_in=("fp32",),
    figures_in=("fp32",), product_side=32, copied_mib=1,
)  # fmt: skip


def test_needs_are_by_kind_and_each_tensor_counts_once() -> None:
    clip, weight, matrix = torch.rand(1, 4, 3, 5, 6), torch.rand(4, 4, 3, 3, 3), torch.rand(8, 16)
    _, needs = count_needs(lambda: (F.conv3d(clip, weight, padding=1), matrix @ matrix.T))
    assert needs.flops == {"convolution": convolution_flops(1, 4, (3, 5, 6)), "product": 2 * 8 * 16 * 8}
    # A transpose is the same storage: read twice.
    assert needs.bytes == 4 * (2 * clip.numel() + weight.numel() + 2 * matrix.numel() + 8 * 8)
    _, expanded = count_needs(lambda: torch.bmm(torch.rand(1, 8, 8).expand(3, 8, 8), torch.rand(3, 8, 8)))
    assert expanded.bytes == 4 * 8 * 8 * (1 + 3 + 3)


@pytest.mark.parametrize("name", ["reconstruct", "penalise", "predict"])
def test_needs_are_the_operations_that_a_run_logs(name: str) -> None:
    builds = {
        "reconstruct": tiny_models.vqgan,
        "penalise": tiny_models.discriminator,
        "predict": tiny_models.transformer,
    }
    model, loss = builds[name](), getattr(tiny_models, name)
    _, needs = count_needs(lambda: loss(model).backward())
    assert needs.total_flops == count_flops(lambda: loss(model).backward())[1] > 0
    assert (needs.flops["convolution"] > 0) == (name != "predict")


def test_a_floor_is_of_operations_or_bytes_whichever_takes_longer() -> None:
    rates = {"product": 100.0, "convolution": 200.0, "copy": 50.0}
    assert Needs({"product": 100.0, "convolution": 400.0}, bytes=100.0).floor_s(rates) == 3.0
    assert Needs({"product": 100.0, "convolution": 0.0}, bytes=500.0).floor_s(rates) == 10.0
    assert Needs({"product": 100.0, "convolution": 0.0}, bytes=0.0).floor_s({"product": 50.0, "copy": 1.0}) == 2.0


def kernels() -> list[Kernel]:
    nothing = Timed(lambda: None, CPU)
    amounts = {"product": 100.0, "convolution": 100.0, "copy": 1e9}
    return [Kernel(f"{kind} {i}", kind, amount, nothing) for kind, amount in amounts.items() for i in range(2)]  # type: ignore[arg-type]


def rounds_of(speeds: list[float]) -> list[Round]:
    """On a machine that is now faster and now slower: products at 100 and 50 FLOP/s, convolutions at 100 and 200."""
    seconds = (1.0, 2.0, 1.0, 0.5, 1.0, 1.0)
    return [
        Round(Turn(kernels(), [speed * own for own in seconds]), {"plain": speed * 8.0, "fast": speed * 4.0})
        for speed in speeds
    ]


def test_a_share_of_the_floor_stands_on_a_machine_that_changes_its_speed() -> None:
    workload = Workload("work", "fp32", 2, "4 x 4", lambda: Built({}, 0), frames=32)
    needs = Needs({"product": 100.0, "convolution": 400.0}, bytes=0.0)
    plain, fast = (summarise(workload, path, 7, needs, rounds_of([1.0, 3.0, 2.0])) for path in ("plain", "fast"))
    assert (plain.seconds, plain.lowest, plain.highest, plain.frames_per_second) == (16.0, 8.0, 24.0, 2.0)
    # The fastest kernel of each kind: 100 / 100 + 400 / 200 seconds at full speed.
    assert (plain.floor_s, plain.of_floor, plain.of_floor_lowest, plain.of_floor_highest) == (6.0, 0.375, 0.375, 0.375)
    assert fast.of_floor == 0.75
    assert plain.of_mm == 500 / 8 / 100
    assert (plain.reference, plain.times_reference) == ("convolution 0", 8.0)
    assert ceilings({"fp32": rounds_of([1.0, 2.0])})["copy 1, fp32"] == {
        "median": "0.5 GB/s", "lowest": "0.5 GB/s", "highest": "1 GB/s", "measured": "2 times"
    }  # fmt: skip


def row(times: float, spread: float, reference: str = "product") -> dict[str, float | str]:
    low, high = times - spread / 2, times + spread / 2
    return {"reference": reference, "times_reference": times, "times_reference_lowest": low,
            "times_reference_highest": high}  # fmt: skip


def test_what_moved_is_what_left_its_spread() -> None:
    stored = {
        "calm": row(10, 1),
        "wide": row(10, 4),
        "gone": row(1, 1),
        "other": row(1, 0, "convolution"),
        "up": row(3, 0),
        "barely": row(10, 0),
    }
    found = {"calm": row(8, 1), "wide": row(8, 1), "new": row(1, 1), "other": row(5, 0), "up": row(4.5, 1),
             "barely": row(10.9, 0)}  # fmt: skip
    assert what_moved(stored, found) == [
        "gone: not measured now",
        "calm: 25% faster, 8 times its reference kernel, was 10",
        "new: new",
        "other: another reference kernel, product, was convolution",
        "up: 50% slower, 4.5 times its reference kernel, was 3",
    ]


def test_short_work_is_repeated() -> None:
    assert [repeats_for(seconds) for seconds in (0.03, 0.1, 5.0)] == [4, 1, 1]
    calls: list[int] = []
    assert Timed(lambda: calls.append(1), CPU, repeats=3).seconds() < 1
    assert len(calls) == 3


def test_targets_take_the_fastest_path_and_never_guess() -> None:
    assert {key for found in targets({}, 1.0).values() for key in list(found.values())[1:]} == {NOT_MEASURED}
    step = "transformer training step"
    figures = {
        f"{step}, tf32, plain": {"path": "plain", "tflop": 2.0, "seconds": 4.0},
        f"{step}, bf16, plain": {"path": "plain", "tflop": 2.0, "seconds": 2.0},
        f"{step}, bf16, fast": {"path": "fast", "tflop": 2.0, "seconds": 1.0},
    }
    found = targets(figures, peak=4e12)
    assert list(found[step].values()) == ["0.5 of the data sheet's FLOPs", "0.5 (fast)", "4.00"]
    assert found["tokenize"]["measured"] == NOT_MEASURED


NAMES = ("tokenize", "detokenize", "transformer forward", "COMMIT sampling, 12 steps and detokenize",
         "transformer training step", "3D-VQGAN training step, G + D + r1 + perceptual")  # fmt: skip


def run_all(config: SpeedConfig) -> Found:
    found = Found()
    for _ in run(TOY, config, found):
        pass
    return found


def test_all_figures_at_toy_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.speed.timing.SHORTEST_S", 0.0)
    found = run_all(SpeedConfig(rounds=1))
    assert set(found.figures) == {f"{name}, fp32, {path}" for name in NAMES for path in ("plain", "fast")}
    assert not found.failures
    assert len(found.rounds["fp32"]) == 1 + 6
    forward, sampling, step = (found.figures[f"{name}, fp32, plain"] for name in NAMES[2:5])
    assert step.tflop > 2.9 * forward.tflop  # forward, and backward to weights and activations
    assert sampling.frames_per_second == pytest.approx(2 * 4 / sampling.seconds)
    assert all(figure.of_floor > 0 and figure.parameters > 0 for figure in found.figures.values())
    differences = {name: found.figures[f"{name}, fp32, fast"].differs for name in NAMES}
    assert differences.pop(NAMES[3]) is differences.pop(NAMES[4]) is None
    assert all(0 <= each < 1e-5 for each in differences.values()), differences


def test_a_run_that_is_cut_off_leaves_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Built:
        raise torch.OutOfMemoryError("64 GiB of 80\nand more")

    def cut_off() -> Built:
        raise KeyboardInterrupt

    one = Built({"plain": lambda: torch.mm(torch.eye(2), torch.eye(2))}, 1)
    rows = {"whole": lambda: one, "large": fail, "late": cut_off}
    found = [Workload(name, "fp32", 1, "1", build) for name, build in rows.items()]
    monkeypatch.setattr(program, "workloads", lambda setting: found)
    monkeypatch.setattr(program, "RESULTS", tmp_path)
    monkeypatch.setitem(program.PLANS, "cpu", TOY)
    with pytest.raises(KeyboardInterrupt):
        main(["store=true", "rounds=1"])
    stored = json.loads((tmp_path / "speed_cpu.json").read_text())["figures"]
    assert list(stored["Figures"]) == ["whole, fp32, plain"]
    assert stored["Left out"] == {"large, fp32": "64 GiB of 80"}


def test_what_takes_too_long_to_compile_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\necho $$ > "{tmp_path}/$3"\n[ "$3" = quick ] || exec sleep 60\n')
    compiler.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(compiler))
    compile_ahead(["quick", "slow", "slower"], longest_s=1.0)
    assert sorted(path.name for path in tmp_path.glob("[qs]*")) == ["quick", "slow", "slower"]
    pids = [int((tmp_path / name).read_text()) for name in ("quick", "slow", "slower")]
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_without_time_everything_is_left_out_by_name() -> None:
    found = run_all(SpeedConfig(minutes=0.0))
    assert found.figures == {}
    assert found.failures == {f"{name}, fp32": "not begun within minutes=0" for name in NAMES}


@pytest.mark.slow
def test_compiled_paths_at_toy_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, but in float32, without graphs, and traced only: tests/unit/test_inference.py makes code."""
    monkeypatch.setattr("benchmarks.speed.timing.SHORTEST_S", 0.0)
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compile_module(self, backend="aot_eager"))
    monkeypatch.setattr(Setting, "compute", ComputeConfig(compile=True))
    found = run_all(SpeedConfig(rounds=1))
    torch._dynamo.reset()
    assert not found.failures
    fast = {name: found.figures[f"{name}, fp32, fast"] for name in NAMES}
    assert {name: figure.differs is not None for name, figure in fast.items()} == dict.fromkeys(NAMES, True) | {
        NAMES[3]: False, NAMES[4]: False
    }  # fmt: skip
    assert {name: figure.differs for name, figure in fast.items() if (figure.differs or 0.0) > 1e-4} == {}


def test_a_path_that_fails_costs_no_other_its_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.speed.timing.SHORTEST_S", 0.0)
    ids = torch.tensor([1, 2, 3, 4])

    def fail() -> None:
        raise RuntimeError("no such kernel\nat line 7")

    paths = {"plain": lambda: torch.mm(torch.eye(2), torch.eye(2)), "broken": fail, "half": lambda: torch.eye(2) / 2}
    measured = measure(Workload("work", "fp32", 1, "1", lambda: Built(paths, 1)), kernels(), CPU, 1)
    assert list(measured.figures) == ["work, fp32, plain", "work, fp32, half"]
    assert measured.failures == {"work, fp32, broken": "no such kernel"}
    assert measured.figures["work, fp32, half"].differs == 0.5
    assert difference(ids, torch.tensor([1, 2, 3, 5])) == 0.25
    assert difference({"a": ids, "b": ids * 1.0}, {"a": ids, "b": ids * 1.1}) == pytest.approx(0.1)


class Halving(torch.nn.Module):
    """A peer: one product."""

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        return clip @ torch.eye(clip.shape[-1]) / 2


def test_peers_have_rows_where_they_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.speed.timing.SHORTEST_S", 0.0)
    monkeypatch.delenv("MAGVIT_JAX", raising=False)
    model = Halving()
    here = ("torch", lambda: peers.Tokenizer(model, model, lambda ids: model(model(ids))))
    monkeypatch.setattr(peers, "PEERS", {"here": here, "away": ("no_such_package", here[1])})
    assert peers.not_installed() == {
        "away": "no_such_package is not installed", "official JAX code": "MAGVIT_JAX does not name a checkout"
    }  # fmt: skip
    tokenize, detokenize = peers.peers(Setting(TOY, "fp32", CPU))
    kernels = build_kernels(Setting(TOY, "fp32", CPU))
    (one,), (two,) = (measure(row, kernels, CPU, 1).figures.values() for row in (tokenize, detokenize))
    assert (tokenize.name, detokenize.name, one.batch) == ("here, tokenize", "here, detokenize", 1)
    assert 2 * one.tflop == two.tflop == 2 * 2 * 3 * 4 * 16**3 / 1e12


@pytest.mark.parametrize(("argument", "words"), [("rounds=0", "rounds=0"), ("device=cuda", "found no GPU")])
def test_what_cannot_be_measured_is_refused(argument: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=words):
        main([argument])
    with pytest.raises(SystemExit, match="the stored file holds all figures"):
        main(["store=true", "only=tokenize"])


def test_it_starts_with_torch_and_few_packages_more() -> None:
    """As `make gpu-check` has it: torch, numpy, and the packages that it names."""
    missing = ["deepspeed", "lpips", "webdataset", "torchvision", "av", "submitit", "tensorboard", "tqdm", "fsspec"]
    missing += ["matplotlib", "PIL", "scipy", "huggingface_hub", "ffmpeg", "braceexpand", "zstandard", "google_crc32c"]
    code = f"import sys; sys.modules.update(dict.fromkeys({missing})); import benchmarks.speed.__main__ as program; "
    code += "import json; print(json.dumps(sorted(n for n in sys.modules if 'perceptual' in n)))"
    answer = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) == ["magvit_scale.vqgan.perceptual"]
