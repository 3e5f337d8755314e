"""The model of a large run, by hand on round numbers."""

from dataclasses import replace

import pytest

from benchmarks.scale_model import (
    Cluster,
    Run,
    checkpoint_wait_share,
    checkpoint_write_share,
    compute_s,
    gradients_s,
    link_bytes_per_s,
    loading_bytes_per_s,
    loading_cores,
    step_s,
    vgg16_flops,
    weights_s,
)

CLUSTER = Cluster(
    flops_per_s=1000, nvlink_bytes_per_s=80, network_bytes_per_s=40, achieved=0.5, hop_s=0.25, gpus_per_node=2,
    cores_per_node=10, file_system_bytes_per_s=60,
)  # fmt: skip
RUN = Run(
    gpus=4, global_batch=8, flops_per_sample=600, share=0.5, parameters=100, bucket=50, sent_over_law=1.5,
    checkpoint_bytes=1200, checkpoint_every=10, copy_s_per_byte=0.01, cpu_s_per_sample=0.5, bytes_per_sample=7,
)  # fmt: skip
LATENCY_S = 2 * 2 * 2 * 0.25  # two buckets, up and down a tree of depth two


def test_arithmetic() -> None:
    assert compute_s(RUN, CLUSTER) == pytest.approx(2 * 600 / (1000 * 0.5))


def test_a_ring_is_as_fast_as_its_slowest_link() -> None:
    assert link_bytes_per_s(RUN, CLUSTER) == 20
    assert link_bytes_per_s(replace(RUN, gpus=2), CLUSTER) == 40
    assert link_bytes_per_s(RUN, replace(CLUSTER, network_bytes_per_s=800)) == 40


def test_gradients_and_weights() -> None:
    # 400 bytes; each of the two halves of an all-reduce sends 300. DeepSpeed: 1.5 x 600 in all, of which weights 300.
    assert gradients_s(replace(RUN, sent_over_law=1.0), CLUSTER) == pytest.approx(300 / 20 + LATENCY_S)
    assert gradients_s(RUN, CLUSTER) == pytest.approx(600 / 20 + LATENCY_S)
    assert weights_s(RUN, CLUSTER) == pytest.approx(300 / 20 + LATENCY_S)


def test_what_is_sent_beside_the_backward_pass_is_hidden() -> None:
    arithmetic, gradients, weights = 2.4, 32.0, 17.0
    assert step_s(RUN, CLUSTER, overlaps=False) == pytest.approx(arithmetic + gradients + weights)
    assert step_s(RUN, CLUSTER, overlaps=True) == pytest.approx(arithmetic / 3 + gradients + weights)
    slow = replace(RUN, flops_per_sample=60_000)  # 240 s, of which 160 backward
    assert step_s(slow, CLUSTER, overlaps=True) == pytest.approx(240 + weights)


def test_data_of_a_node() -> None:
    # Two samples per GPU and two GPUs in a step of 8 s.
    assert loading_cores(RUN, CLUSTER, 8.0) == pytest.approx(4 / 8 * 0.5)
    assert loading_bytes_per_s(RUN, CLUSTER, 8.0) == pytest.approx(4 / 8 * 7)
    assert loading_cores(replace(RUN, gpus=1), CLUSTER, 8.0) == pytest.approx(8 / 8 * 0.5)


def test_checkpoints() -> None:
    # A rank copies 300 bytes in 3 s, all write 1,200 in 20 s, every 10 steps of 4 s.
    assert checkpoint_wait_share(RUN, 4.0) == pytest.approx(3 / 40)
    assert checkpoint_write_share(RUN, CLUSTER, 4.0) == pytest.approx(20 / 40)


def test_vgg16_is_the_known_size() -> None:
    assert vgg16_flops(224) / 2 == pytest.approx(15.35e9, rel=1e-3)
