"""A training step on many GPUs, on paper: pure functions of assumptions. Nothing here is measured."""

import math
from dataclasses import dataclass

from benchmarks.laws import BYTES, sent_bytes

VGG16 = ((3, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 2), (128, 256, 4), (256, 256, 4), (256, 256, 4),
         (256, 512, 8), (512, 512, 8), (512, 512, 8), (512, 512, 16), (512, 512, 16), (512, 512, 16))  # fmt: skip
"""Channels in and out of its convolutions, and by how much the picture's side has been halved before."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Machines, as assumed.

    Attributes:
        flops_per_s: of a GPU at most.
        nvlink_bytes_per_s: of a GPU within its node, one direction.
        network_bytes_per_s: of a node, one direction.
        achieved: share of a link that a collective gets.
        hop_s: latency of a message.
        gpus_per_node: GPUs that share a node's network.
        cores_per_node: for loading data.
        file_system_bytes_per_s: of all nodes together.
    """

    flops_per_s: float
    nvlink_bytes_per_s: float
    network_bytes_per_s: float
    achieved: float
    hop_s: float
    gpus_per_node: int
    cores_per_node: int
    file_system_bytes_per_s: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run, under ZeRO 2.

    Attributes:
        gpus: ranks.
        global_batch: samples per step of all ranks.
        flops_per_sample: forward, backward, all networks.
        share: of the GPU's peak that these reach.
        parameters: trained ones of all engines.
        bucket: values that are reduced in one collective.
        sent_over_law: what DeepSpeed sends, over ZeRO's law.
        checkpoint_bytes: of one checkpoint, all ranks.
        checkpoint_every: steps.
        copy_s_per_byte: seconds per byte of a rank's part until training goes on.
        cpu_s_per_sample: to load one, on one core.
        bytes_per_sample: read from storage.
    """

    gpus: int
    global_batch: int
    flops_per_sample: float
    share: float
    parameters: int
    bucket: int
    sent_over_law: float
    checkpoint_bytes: float
    checkpoint_every: int
    copy_s_per_byte: float
    cpu_s_per_sample: float
    bytes_per_sample: float


def compute_s(run: Run, cluster: Cluster) -> float:
    """Seconds of arithmetic per step."""
    return run.global_batch / run.gpus * run.flops_per_sample / (cluster.flops_per_s * run.share)


def link_bytes_per_s(run: Run, cluster: Cluster) -> float:
    """What a rank sends per second in a ring through all of them. Only one of a node's ranks at a time has its
    neighbour elsewhere, so a rank is as fast as its NVLink, or as its whole node's network.
    """
    spans_nodes = run.gpus > cluster.gpus_per_node
    slowest = (
        min(cluster.nvlink_bytes_per_s, cluster.network_bytes_per_s) if spans_nodes else cluster.nvlink_bytes_per_s
    )
    return slowest * cluster.achieved


def gradients_s(run: Run, cluster: Cluster) -> float:
    """Seconds until gradients are summed: ZeRO's law is a reduce-scatter, DeepSpeed's is `sent_over_law` of all."""
    law = sent_bytes("reduce_scatter", BYTES * run.parameters, run.gpus)
    extra = (run.sent_over_law - 1) * 2 * law
    return (law + extra) / link_bytes_per_s(run, cluster) + _latency_s(run, cluster)


def weights_s(run: Run, cluster: Cluster) -> float:
    """Seconds until updated weights are gathered."""
    sent = sent_bytes("all_gather", BYTES * run.parameters, run.gpus)
    return sent / link_bytes_per_s(run, cluster) + _latency_s(run, cluster)


def step_s(run: Run, cluster: Cluster, *, overlaps: bool) -> float:
    """Seconds of a step. `overlaps`: gradients are sent beside the backward pass, two thirds of the arithmetic, as
    DeepSpeed's `overlap_comm` does; weights are gathered after the update in any case.
    """
    compute, gradients = compute_s(run, cluster), gradients_s(run, cluster)
    if overlaps:
        return compute / 3 + max(2 * compute / 3, gradients) + weights_s(run, cluster)
    return compute + gradients + weights_s(run, cluster)


def loading_cores(run: Run, cluster: Cluster, seconds: float) -> float:
    """Cores of a node that load data at a step of `seconds`."""
    return samples_per_node_s(run, cluster, seconds) * run.cpu_s_per_sample


def loading_bytes_per_s(run: Run, cluster: Cluster, seconds: float) -> float:
    """Bytes that a node reads per second."""
    return samples_per_node_s(run, cluster, seconds) * run.bytes_per_sample


def checkpoint_wait_share(run: Run, seconds: float) -> float:
    """Share of time that training waits for copies of its state."""
    return run.checkpoint_bytes / run.gpus * run.copy_s_per_byte / (run.checkpoint_every * seconds)


def checkpoint_write_share(run: Run, cluster: Cluster, seconds: float) -> float:
    """Share of time that the file system is busy with checkpoints; above 1 training waits for the rest."""
    return run.checkpoint_bytes / cluster.file_system_bytes_per_s / (run.checkpoint_every * seconds)


def vgg16_flops(side_px: int) -> float:
    """Operations of VGG16's convolutions on a square picture."""
    return sum(2 * 9 * inputs * outputs * (side_px / halved) ** 2 for inputs, outputs, halved in VGG16)


def samples_per_node_s(run: Run, cluster: Cluster, seconds: float) -> float:
    """Samples that a node takes per second at a step of `seconds`."""
    return run.global_batch / run.gpus * min(run.gpus, cluster.gpus_per_node) / seconds


def _latency_s(run: Run, cluster: Cluster) -> float:
    """Of a tree up and down, for every bucket."""
    buckets = math.ceil(run.parameters / run.bucket)
    return buckets * 2 * math.log2(run.gpus) * cluster.hop_s
