"""A device's peak: the right line of the right data sheet, or a measured figure, and no draw from the run's dice."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from magvit_scale.training import peak
from magvit_scale.training.peak import find_sheet, measured_peak, peak_flops

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("name", "half"),
    [
        ("Tesla V100-SXM2-32GB", 125),
        ("Tesla V100-PCIE-16GB", 112),
        ("Tesla T4", 65),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989.4),
        ("NVIDIA B200", 2250),
        ("NVIDIA GeForce RTX 3090", 71),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 5090", 209.5),
    ],
)
def test_the_names_that_drivers_give(name: str, half: float) -> None:
    sheet = find_sheet(name)
    assert sheet is not None
    assert sheet.half == half


@pytest.mark.parametrize(
    "name",
    ["NVIDIA A10G", "NVIDIA L40", "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 4090 Laptop GPU",
     "NVIDIA GeForce RTX 3090 Ti", "NVIDIA GH200 480GB", "NVIDIA A100-SXM4-40GB MIG 3g.20gb", "NVIDIA GB200"],
)  # fmt: skip
def test_a_cousin_of_a_listed_gpu_is_another_gpu(name: str) -> None:
    assert find_sheet(name) is None


def of_gpu(monkeypatch: pytest.MonkeyPatch, name: str, precision: peak.Precision) -> peak.Peak:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(peak, "measured_peak", lambda device, precision: peak.Peak(1.0, "measured"))
    return peak_flops(CUDA, precision)


@pytest.fixture
def tf32_switches() -> Iterator[tuple[Any, Any]]:
    """Torch's own two, as they were afterwards; monkeypatch cannot put them back."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [switch.fp32_precision for switch in switches]
    yield switches
    for switch, precision in zip(switches, before, strict=True):
        switch.fp32_precision = precision


@pytest.mark.parametrize(
    ("matmul", "conv", "tera", "kind"),
    [("ieee", "ieee", 19.5, "fp32"), ("tf32", "ieee", 156, "TF32"), ("ieee", "tf32", 156, "TF32")],
)
def test_fp32_is_tf32_where_torch_may_use_it(
    monkeypatch: pytest.MonkeyPatch, tf32_switches: tuple[Any, Any], matmul: str, conv: str, tera: float, kind: str
) -> None:
    for switch, precision in zip(tf32_switches, (matmul, conv), strict=True):
        switch.fp32_precision = precision
    found = of_gpu(monkeypatch, "NVIDIA A100-SXM4-80GB", "fp32")
    assert found.flops_per_s == tera * 1e12
    assert found.source == f"{tera:g} TFLOP/s, {kind} of NVIDIA A100-SXM4-80GB, dense, data sheet"


@pytest.mark.parametrize(
    ("name", "precision", "flops"),
    [
        ("Tesla V100-SXM2-32GB", "fp32", 15.7e12),
        ("Tesla V100-SXM2-32GB", "fp16", 125e12),
        ("Tesla V100-SXM2-32GB", "bf16", 1.0),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA Unheard-of", "bf16", 1.0),
    ],
)
def test_what_no_sheet_names_is_measured(
    monkeypatch: pytest.MonkeyPatch, name: str, precision: peak.Precision, flops: float
) -> None:
    assert of_gpu(monkeypatch, name, precision).flops_per_s == flops


def test_a_measured_rate_is_operations_over_the_median_time(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([9.0, 0.03, 0.01, 0.06, 0.02, 0.1])
    monkeypatch.setattr(peak, "_seconds_of_product", lambda matrix: next(times))
    # The first is the warm-up; 0.03 + 0.01 + 0.06 + 0.02 < 0.2, so five count, and their median is 0.03.
    found = measured_peak(torch.device("cpu"), "fp32")
    assert found.flops_per_s == pytest.approx(2 * 512**3 / 0.03)
    assert "fp32, measured on products of 512 x 512 matrices" in found.source


def test_measuring_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "MEASURED_S", 1e-9)
    before = torch.get_rng_state()
    assert peak_flops(torch.device("cpu"), "fp32").flops_per_s > 1e8
    assert torch.equal(torch.get_rng_state(), before)
