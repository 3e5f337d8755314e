"""A run on up to 1,024 GPUs, on paper: `python -m benchmarks.at_scale`, seconds; needs the other results.

No figure of it is a measurement: benchmarks/scale_model.py computes all of them from the assumptions in the first
table, of which some are measured on this machine, some a maker's and some only assumed.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import write_results
from benchmarks.memory import cases
from benchmarks.scale_model import (
    Cluster,
    Run,
    checkpoint_wait_share,
    checkpoint_write_share,
    compute_s,
    gradients_s,
    loading_bytes_per_s,
    loading_cores,
    samples_per_node_s,
    step_s,
    vgg16_flops,
    weights_s,
)
from magvit_scale.training.peak import find_sheet

RESULTS = Path(__file__).parent / "results"
OUTPUT = RESULTS / "scale.json"
NOTE = """A MODEL, NO MEASUREMENT: computed by benchmarks/scale_model.py from the assumptions of its first table. Left
out: slow ranks, failures, the time between kernels, what a smaller batch per GPU costs in efficiency, and how long a
clip is looked for among many shards (Data of 1,024 ranks). ZeRO 2 as configs/deepspeed/zero2.json has it; gradients and
weights travel in float32, as this package keeps them; one micro-batch, nothing computed again: eight clips of 3D-VQ-L
then keep 43 GB. ZeRO 0 holds everything everywhere (4.9 GB of BERT-L) and sends what the law says. The paper's batch is
256, so that no more than 256 GPUs have work; the scaled one gives each GPU what 64 of them had, or twice that."""
PAPER_BATCH, PER_GPU = 256, 4
GPU = "NVIDIA H100 80GB HBM3"
SLOW_NETWORK = 25e9
Assumptions = dict[str, tuple[Any, str]]


def main() -> None:
    """Writes results/scale.json."""
    assumed = assumptions()
    cluster = cluster_of(assumed)
    groups: dict[str, Mapping[str, Any]] = {
        "Assumptions": {name: {"value": _text(value), "source": source} for name, (value, source) in assumed.items()}
    }
    runs = {name: run_of(name, assumed) for name in ("3D-VQ-L", "BERT-L")}
    groups["A step (model)"] = {name: step_row(run, on) for name, run, on in layouts(runs, cluster)}
    groups["Data and checkpoints (model)"] = {name: traffic_row(run, on) for name, run, on in layouts(runs, cluster)}
    write_results(OUTPUT, "1,024 GPUs on paper: a model", "python -m benchmarks.at_scale", groups, NOTE)
    for heading, group in groups.items():
        sys.stdout.write(f"{heading}\n" + "".join(f"  {name}: {row}\n" for name, row in group.items()))


def assumptions() -> Assumptions:
    """Every number that the model takes, and where it is from."""
    sheet = find_sheet(GPU)
    assert sheet is not None, "peak.py has it"
    memory, sheet_of_node = _figures("memory"), "data sheet of DGX H100"
    vqgan, judge = (_tflop(memory, name) for name in ("3D VQGAN-L", "3D discriminator-L, real and fake and r1"))
    adversarial = _tflop(memory, "3D discriminator-L, real and fake") / 2 * 2 / 3
    perceptual = 3 * 16 * vgg16_flops(128) / 1e12
    saved = _figures("checkpoints")["Checkpoint of a transformer, one process, ZeRO 2"]["L"]
    saved_bytes, waited = (float(saved[name].split()[0]) for name in ("size", "training waits"))
    sent = _figures("growth")["Ranks: a small transformer, 8 samples over all ranks"]["ZeRO 2, 4 ranks"]["sent / law"]
    clip, token = _ms("clips", "Clips of"), _ms("token shards, 208 shards", "Token clips")
    return {
        "GPU: dense bf16, FLOP/s": (sheet.half * 1e12, f"data sheet of {GPU} (magvit_scale/training/peak.py)"),
        "GPU: NVLink, bytes/s in one direction": (450e9, "data sheet of H100 SXM"),
        "node: GPUs": (8, sheet_of_node),
        "node: network, bytes/s in one direction": (400e9, f"{sheet_of_node}: eight adapters of 400 Gbit/s"),
        "node, slow network, bytes/s": (SLOW_NETWORK, "assumed: one adapter of 200 Gbit/s"),
        "node: cores": (112, sheet_of_node),
        "links: share that a collective gets": (0.8, "assumed"),
        "links: latency of a message, s": (10e-6, "assumed"),
        "file system, bytes/s for all nodes": (50e9, "assumed"),
        "share of the peak, BERT-L": (0.4, "assumed"),
        "share of the peak, 3D-VQ-L": (0.25, "assumed"),
        "TFLOP per clip, 3D-VQ-L": (
            round(vqgan + judge + adversarial + perceptual, 2),
            f"counted: results/memory.json ({vqgan} generator, {judge} discriminator with r1), two thirds of a "
            f"discriminator's pass ({adversarial:.2f}), VGG16 three times on 16 frames ({perceptual:.2f})",
        ),
        "TFLOP per sequence, BERT-L": (_tflop(memory, "transformer-L"), "counted: results/memory.json"),
        "parameters, 3D-VQ-L": (_parameters("3D VQGAN-L") + _parameters("3D discriminator-L"), "counted"),
        "parameters, BERT-L": (_parameters("transformer-L"), "counted"),
        "sent under ZeRO 2 over its law": (float(sent), "measured: results/growth.json"),
        "values per bucket": (_bucket(), "configs/deepspeed/zero2.json"),
        "checkpoint, bytes per parameter": (12, "weights and two moments in float32; results/checkpoints.json agrees"),
        "checkpoint, bytes of the average, 3D-VQ-L": (4 * _parameters("3D VQGAN-L"), "the generator's, in float32"),
        "checkpoint, bytes of the average, BERT-L": (0, "stage 2 keeps none"),
        "checkpoint, s of waiting per byte of a rank": (
            float(f"{waited / saved_bytes / 1e9:.2g}"), "measured on a CPU: results/checkpoints.json",
        ),
        "checkpoint, steps between": (500, "default of run.checkpoint_every"),
        "loading a clip, s of a core": (clip, "measured: results/data.json, shards here and in the page cache"),
        "loading a token sequence, s of a core": (token, "measured: results/data.json"),
        "bytes read per clip": (300_000, "assumed: ten seconds of H.264 at 128 px, read whole"),
        "bytes read per token sequence": (2 * 2 * 1024, "one of two canvases of 1,024 uint16 tokens, both read"),
    }  # fmt: skip


def cluster_of(assumed: Assumptions) -> Cluster:
    """The machines among the assumptions."""
    return Cluster(
        flops_per_s=assumed["GPU: dense bf16, FLOP/s"][0],
        nvlink_bytes_per_s=assumed["GPU: NVLink, bytes/s in one direction"][0],
        network_bytes_per_s=assumed["node: network, bytes/s in one direction"][0],
        achieved=assumed["links: share that a collective gets"][0],
        hop_s=assumed["links: latency of a message, s"][0],
        gpus_per_node=assumed["node: GPUs"][0],
        cores_per_node=assumed["node: cores"][0],
        file_system_bytes_per_s=assumed["file system, bytes/s for all nodes"][0],
    )


def run_of(name: str, assumed: Assumptions) -> Run:
    """A model's run among the assumptions, on 64 GPUs."""
    kind, unit = ("clip", "clip") if name == "3D-VQ-L" else ("token sequence", "sequence")
    parameters = assumed[f"parameters, {name}"][0]
    return Run(
        gpus=PAPER_BATCH // PER_GPU,
        global_batch=PAPER_BATCH,
        flops_per_sample=assumed[f"TFLOP per {unit}, {name}"][0] * 1e12,
        share=assumed[f"share of the peak, {name}"][0],
        parameters=parameters,
        bucket=assumed["values per bucket"][0],
        sent_over_law=assumed["sent under ZeRO 2 over its law"][0],
        checkpoint_bytes=assumed["checkpoint, bytes per parameter"][0] * parameters
        + assumed[f"checkpoint, bytes of the average, {name}"][0],
        checkpoint_every=assumed["checkpoint, steps between"][0],
        copy_s_per_byte=assumed["checkpoint, s of waiting per byte of a rank"][0],
        cpu_s_per_sample=assumed[f"loading a {kind}, s of a core"][0],
        bytes_per_sample=assumed[f"bytes read per {kind}"][0],
    )


def layouts(runs: Mapping[str, Run], cluster: Cluster) -> list[tuple[str, Run, Cluster]]:
    """What the tables have a row for."""
    slow, found = replace(cluster, network_bytes_per_s=SLOW_NETWORK), []
    for name, run in runs.items():
        for gpus in (64, 128, 256):
            found.append((f"{name}, paper's batch, {gpus} GPUs", replace(run, gpus=gpus), cluster))
        for per_gpu in (PER_GPU, 2 * PER_GPU):
            wide = replace(run, gpus=1024, global_batch=1024 * per_gpu)
            found.append((f"{name}, {per_gpu} per GPU, 1,024 GPUs", wide, cluster))
            found.append((f"{name}, {per_gpu} per GPU, 1,024 GPUs, slow network", wide, slow))
    return found


def step_row(run: Run, cluster: Cluster) -> dict[str, str]:
    """Where a step's time goes."""
    compute, plain, overlapped = (
        compute_s(run, cluster), step_s(run, cluster, overlaps=False), step_s(run, cluster, overlaps=True),
    )  # fmt: skip
    return {
        "batch": f"{run.global_batch:,}",
        "arithmetic, ms": f"{1e3 * compute:.1f}",
        "gradients, ms": f"{1e3 * gradients_s(run, cluster):.1f}",
        "weights, ms": f"{1e3 * weights_s(run, cluster):.1f}",
        "step, ms": f"{1e3 * plain:.1f}",
        "of it arithmetic": f"{compute / plain:.0%}",
        "step with overlap_comm, ms": f"{1e3 * overlapped:.1f}",
        "then arithmetic": f"{compute / overlapped:.0%}",
        "step with ZeRO 0, ms": f"{1e3 * step_s(replace(run, sent_over_law=1.0), cluster, overlaps=False):.1f}",
        "samples/s": f"{run.global_batch / plain:,.0f}",
    }


def traffic_row(run: Run, cluster: Cluster) -> dict[str, str]:
    """What a node reads and all write, at the step of `step_row`."""
    seconds = step_s(run, cluster, overlaps=False)
    cores = loading_cores(run, cluster, seconds)
    return {
        "samples/s per node": f"{samples_per_node_s(run, cluster, seconds):,.0f}",
        "cores that load them": f"{cores:.2g}",
        "of the node's cores": f"{cores / cluster.cores_per_node:.1g}",
        "read per node, MB/s": f"{loading_bytes_per_s(run, cluster, seconds) / 1e6:.1f}",
        "checkpoint, GB": f"{run.checkpoint_bytes / 1e9:.2f}",
        "every, s": f"{run.checkpoint_every * seconds:.0f}",
        "training waits, share of time": f"{checkpoint_wait_share(run, seconds):.1g}",
        "file system busy, share (hidden below 1)": f"{checkpoint_write_share(run, cluster, seconds):.1g}",
    }


def _figures(name: str) -> dict[str, Any]:
    return dict(json.loads((RESULTS / f"{name}.json").read_text())["figures"])


def _tflop(memory: Mapping[str, Any], name: str) -> float:
    return float(memory[f"{name}, autocast to bfloat16"]["none"]["TFLOP"])


def _ms(row: str, heading: str) -> float:
    group = next(group for name, group in _figures("data").items() if name.startswith(heading))
    return float(f"{group[row]['ms_per_item'] / 1e3:.3g}")


def _parameters(name: str) -> int:
    case = next(case for case in cases() if case.name.startswith(name))
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in case.build().parameters())


def _bucket() -> int:
    settings = json.loads((RESULTS.parents[1] / "configs" / "deepspeed" / "zero2.json").read_text())
    return int(settings["zero_optimization"]["reduce_bucket_size"])


def _text(value: float) -> str:
    return f"{value:,}" if 1 <= value < 1e9 else f"{value:.4g}"


if __name__ == "__main__":
    main()
