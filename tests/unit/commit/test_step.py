"""Stage 2's draws are functions of (seed, step, position); its step is the plain update of the plain loss."""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magvit_scale.commit.condition import build_prompt
from magvit_scale.commit.masking import Assignment, assign
from magvit_scale.commit.step import commit_step, condition_of_batch, draw_masked, draw_tasks
from magvit_scale.commit.tasks import MASK_TOKEN, canvases_of, latent_mask
from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import (
    TASKS,
    CommitLossConfig,
    Refusal,
    RunConfig,
    Task,
    TrainCommitConfig,
    TransformerConfig,
    commit_health,
)
from magvit_scale.page.words import CURVE_WORDS
from tests.fake_gpu import fake_gpu

LATENT = (2, 4, 4)
NUM_TOKENS = 32
CANVASES = ("z", *canvases_of(TASKS))


def every(batch: int, num_tokens: int = NUM_TOKENS) -> Tensor:
    """All tokens may be masked."""
    return torch.ones(batch, num_tokens, dtype=torch.bool)


def config(seed: int = 0, **changes: object) -> TrainCommitConfig:
    model = TransformerConfig(
        num_layers=1,
        hidden_size=16,
        mlp_dim=16,
        num_heads=2,
        latent_shape=LATENT,
        codebook_size=20,
        num_classes=3,
        dropout=0.0,
    )
    run = RunConfig(folder="unused", steps=1, global_batch_size=4, seed=seed)
    plain = TrainCommitConfig(run=run, tokens="unused", tokenizer="unused", model=model)
    return replace(plain, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("one_task_per_step", [True, False])
def test_draws_are_functions_of_seed_step_and_position_alone(one_task_per_step: bool) -> None:
    now = config(one_task_per_step=one_task_per_step)
    whole_tasks, whole_masks = draw_tasks(now, 7, [3, 11, 200]), draw_masked(now, 7, [3, 11, 200], every(3))
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    draw_tasks(now, 1, [3])
    draw_masked(now, 9, [11], every(1))
    # Any split of the batch over ranks, in any order, draws the same.
    for row, position in ((2, 200), (0, 3), (1, 11)):
        assert draw_tasks(now, 7, [position]) == [whole_tasks[row]]
        assert torch.equal(draw_masked(now, 7, [position], every(1))[0], whole_masks[row])


@pytest.mark.parametrize("one_task_per_step", [True, False])
def test_draws_differ_between_positions_steps_and_seeds(one_task_per_step: bool) -> None:
    def draws(seed: int, step: int, first: int) -> tuple[list[Task], Tensor]:
        now, positions = config(seed, one_task_per_step=one_task_per_step), range(first, first + 64)
        tasks = [draw_tasks(now, step + i, [p])[0] for i, p in enumerate(positions)]
        return tasks, draw_masked(now, step, positions, every(64))

    tasks, masks = draws(0, 5, 1000)
    assert len({tuple(row.tolist()) for row in masks}) > 60
    for other in (draws(1, 5, 1000), draws(0, 105, 2000)):
        assert other[0] != tasks
        assert not torch.equal(other[1], masks)


@pytest.mark.parametrize("tasks", [TASKS, ("FP", "FP", "CG"), ("OPC",)])
def test_one_task_per_step_is_exactly_uniform(tasks: tuple[Task, ...]) -> None:
    now = config(tasks=tasks)
    drawn = [draw_tasks(now, step, [0, 1]) for step in range(20 * len(tasks))]
    assert all(first == second for first, second in drawn)
    counts = Counter(first for first, _ in drawn)
    assert counts == {task: 20 * tasks.count(task) for task in tasks}
    cycles = {tuple(first for first, _ in drawn[i : i + len(tasks)]) for i in range(0, len(drawn), len(tasks))}
    assert len(cycles) > 1 or len(set(tasks)) == 1  # not the same order for ever


def test_a_task_per_sample_is_uniform_in_the_long_run() -> None:
    now = config(one_task_per_step=False)
    counts = Counter(draw_tasks(now, 0, range(2000)))
    assert set(counts) == set(TASKS)
    assert all(200 - 60 < count < 200 + 60 for count in counts.values())  # more than four deviations of 13.4
    assert draw_tasks(now, 5, range(20)) == draw_tasks(now, 0, range(20))  # a position is used in one step only


def test_the_masked_share_is_one_per_step_or_one_per_sample() -> None:
    shared = draw_masked(config(), 3, range(16), every(16, 256)).sum(1)
    assert len(set(shared.tolist())) == 1
    assert len({draw_masked(config(), step, [0], every(1, 256)).sum().item() for step in range(16)}) > 8
    own = draw_masked(config(one_task_per_step=False), 3, range(16), every(16, 256)).sum(1)
    assert len(set(own.tolist())) > 8


def test_masked_shares_follow_the_cosine_of_a_uniform_draw() -> None:
    shares = draw_masked(config(one_task_per_step=False), 0, range(2000), every(2000, 64)).double().mean(1)
    # E cos(pi u / 2) = 2 / pi; the floor takes half a token of 64 on average.
    assert shares.mean().item() == pytest.approx(2 / np.pi - 0.5 / 64, abs=0.03)
    assert shares.min() == 1 / 64
    assert shares.max() > 0.97


def test_ceil_masks_one_more_than_floor_wherever_the_share_is_no_whole_number() -> None:
    floor, ceil = (
        draw_masked(config(one_task_per_step=False, mask_count=rounding), 0, range(50), every(50)).sum(1)
        for rounding in ("floor", "ceil")
    )
    assert set((ceil - floor).tolist()) <= {0, 1}  # 0: a share below one token
    assert ((ceil - floor) == 1).sum() > 40


def test_a_fixed_condition_is_never_masked_and_the_share_is_of_the_rest() -> None:
    now = config(one_task_per_step=False)
    is_maskable = torch.arange(64).expand(200, 64) >= 16
    rest, whole = draw_masked(now, 0, range(200), is_maskable), draw_masked(now, 0, range(200), every(200, 64))
    assert not rest[:, :16].any()
    ratio = whole.sum(1) / 64
    assert ((rest.sum(1) - 48 * ratio).abs() <= 1).all()


def shard(batch: int) -> Tensor:
    """Tokens 'b canvases t h w' that say which canvas they are of: 0 for the clip, then 1, 2, ..."""
    canvases = torch.arange(len(CANVASES)).reshape(1, -1, 1, 1, 1)
    return canvases.expand(batch, -1, *LATENT).clone()


def inputs_of(tasks: Sequence[Task], is_masked: Tensor, **changes: object) -> Assignment:
    model, tokens = TransformerConfig(**changes), shard(len(tasks))  # type: ignore[arg-type]
    return assign(tokens[:, 0].flatten(1), condition_of_batch(tokens, tasks, CANVASES, model), is_masked)


@pytest.mark.parametrize("conditioning", ["commit", "canvas", "latent", "prefix"])
def test_inputs_take_the_tasks_own_canvas(conditioning: str) -> None:
    assignment = inputs_of(TASKS, every(len(TASKS)), conditioning=conditioning) if conditioning != "prefix" else None
    for row, task in enumerate(TASKS):
        canvas = 0 if task == "CG" or conditioning == "latent" else CANVASES.index("FP" if task == "CFP" else task)
        given = latent_mask(task, LATENT, TransformerConfig()).flatten()
        if assignment:
            assert torch.equal(assignment.inputs[row], torch.where(given, canvas, MASK_TOKEN)), task
            continue
        condition = condition_of_batch(shard(2), [task] * 2, CANVASES, TransformerConfig(conditioning="prefix"))
        expected = [] if task == "CG" else [canvas] * int(given.sum()) + [-2]
        assert condition.before.tolist() == [expected] * 2, task
        assert not condition.where.any()
        assert not condition.is_fixed.any()


def test_conditions_of_two_lengths_do_not_stand_before_one_batch() -> None:
    with pytest.raises(Refusal, match=r"\[8, 16\] condition tokens; set one_task_per_step=true"):
        condition_of_batch(shard(2), ["OPC", "OPV"], CANVASES, TransformerConfig(conditioning="prefix"))


def test_a_task_has_its_token_and_shows_the_class_where_it_is_of_one() -> None:
    labels = torch.arange(len(TASKS)) % 3
    task_tokens, shown = build_prompt(TASKS, labels, TransformerConfig())
    assert dict(zip(TASKS, shown.tolist(), strict=True)) == {
        task: labels[row].item() if task in ("CG", "CFP") else -1 for row, task in enumerate(TASKS)
    }
    assert dict(zip(TASKS, task_tokens.tolist(), strict=True))["IPC"] == -7
    shared, _ = build_prompt(["IPC"], labels[:1], TransformerConfig(inpainting_token="outpainting"))
    assert shared.tolist() == [-6]


def test_tokens_that_are_not_masked_are_shown() -> None:
    assignment = inputs_of(["OPC", "FP"], ~every(2))
    assert not assignment.inputs.any()
    assert assignment.reconstruct.all()


class Engine:
    """What commit_step needs of an engine, with plain SGD inside."""

    def __init__(self, module: CommitTransformer, accumulation: int = 1):
        self.module, self.accumulation = module, accumulation
        self.optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        self.calls: list[str] = []

    def __call__(self, sequence: Tensor) -> Tensor:
        self.calls.append("forward")
        return self.module(sequence)

    def backward(self, loss: Tensor) -> None:
        self.calls.append("backward")
        (loss / self.accumulation).backward()

    def step(self) -> Tensor:
        self.calls.append("step")
        norm = nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None])
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm


def accept(values: Mapping[str, Tensor]) -> None:
    assert all(torch.isfinite(value).all() for value in values.values())


def random_batch(positions: Sequence[int]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 20, (len(positions), len(CANVASES), *LATENT), generator=generator)
    labels = torch.randint(0, 3, (len(positions),), generator=generator)
    return {"tokens": tokens, "label": labels, "position": torch.tensor(positions)}


def build(now: TrainCommitConfig) -> CommitTransformer:
    torch.manual_seed(0)
    return CommitTransformer(now.model).train()


@pytest.mark.parametrize("one_task_per_step", [True, False])
def test_a_step_is_the_plain_update(one_task_per_step: bool) -> None:
    now = config(
        one_task_per_step=one_task_per_step,
        loss=CommitLossConfig(refine_weight=2.0, mask_weight=1.0, reconstruct_weight=0.5, label_smoothing=0.1),
    )
    batch, engine = random_batch([40, 41, 42, 43]), Engine(build(now))
    plain = copy.deepcopy(engine.module)
    metrics = commit_step(engine, [batch], 10, now, CANVASES, accept)

    tasks = draw_tasks(now, 10, [40, 41, 42, 43])
    is_masked = draw_masked(now, 10, [40, 41, 42, 43], every(4))
    condition = condition_of_batch(batch["tokens"], tasks, CANVASES, now.model)
    parts = assign(batch["tokens"][:, 0].flatten(1), condition, is_masked)
    prompt = build_prompt(tasks, batch["label"], now.model)
    logits = plain(plain.build_sequence(*prompt, parts.inputs))[:, 2:, :20]
    targets = batch["tokens"][:, 0].flatten(1)
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none", label_smoothing=0.1)
    weights = 2.0 * parts.refine + 1.0 * parts.mask + 0.5 * parts.reconstruct
    total = ((weights * losses).sum(1) / weights.sum(1)).mean()
    total.backward()
    squares = [parameter.grad.square().sum() for parameter in plain.parameters() if parameter.grad is not None]
    norm = torch.stack(squares).sum().sqrt().item()
    assert metrics["optim/gradient_norm_transformer"].item() == pytest.approx(norm, rel=1e-5)
    is_right, is_asked = logits.argmax(-1) == targets, parts.refine | parts.mask
    shares = [is_right[row][is_asked[row]].double().mean().item() for row in range(4)]
    assert metrics["mask/accuracy"].item() == pytest.approx(np.mean(shares), rel=1e-6)
    assert metrics["mask/ratio"].item() == pytest.approx(is_masked.double().mean().item(), rel=1e-6)
    assert metrics.keys() <= CURVE_WORDS.keys(), "the page has no word for it"
    assert metrics.keys() >= {rule.metric for rule in commit_health().rules.values()}, "a rule would never act"
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter -= 0.1 * parameter.grad
    assert engine.calls == ["forward", "backward", "step"]
    assert metrics["loss/total"].item() == pytest.approx(total.item(), rel=1e-5)
    for (name, found), expected in zip(engine.module.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}")
    for part in ("refine", "mask", "reconstruct"):
        where = getattr(parts, part)
        expected_part = losses[where].mean().item() if where.any() else 0.0
        assert metrics[f"loss/{part}"].item() == pytest.approx(expected_part, rel=1e-5)
        assert not metrics[f"loss/{part}"].requires_grad


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("one_task_per_step", [True, False])
def test_micro_batches_are_the_whole_batch(count: int, one_task_per_step: bool) -> None:
    now, batch = config(one_task_per_step=one_task_per_step), random_batch([40, 41, 42, 43])
    whole, parts = Engine(build(now)), Engine(build(now), count)
    chunks = {name: tensor.chunk(count) for name, tensor in batch.items()}
    micro_batches = [{name: chunks[name][part] for name in chunks} for part in range(count)]
    expected = commit_step(whole, [batch], 10, now, CANVASES, accept)
    found = commit_step(parts, micro_batches, 10, now, CANVASES, accept)
    assert parts.calls == [*["forward", "backward"] * count, "step"]
    # Losses per token of one kind are means over a micro-batch's own tokens; the total is one over samples.
    for name in ("loss/total", "optim/gradient_norm_transformer"):
        assert found[name].item() == pytest.approx(expected[name].item(), rel=1e-5)
    for one, other in zip(parts.module.parameters(), whole.module.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_targets_are_the_clips_tokens_at_every_position() -> None:
    now, batch = config(loss=CommitLossConfig(label_smoothing=0.0)), random_batch([0, 1])
    engine = Engine(build(now))
    with torch.no_grad():
        for parameter in engine.module.parameters():
            parameter.zero_()
        engine.module.head_bias[:20] = torch.linspace(-1, 1, 20)
    expected = F.cross_entropy(torch.linspace(-1, 1, 20).expand(64, 20), batch["tokens"][:, 0].flatten())
    assert commit_step(engine, [batch], 0, now, CANVASES, accept)["loss/total"].item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_the_guard_stops_before_the_optimiser() -> None:
    now = config()
    engine = Engine(build(now))
    with torch.no_grad():
        engine.module.head_bias[0] = float("nan")

    def refuse(values: Mapping[str, Tensor]) -> None:
        if not all(torch.isfinite(value).all() for value in values.values()):
            raise FloatingPointError("not finite")

    with pytest.raises(FloatingPointError):
        commit_step(engine, [random_batch([0, 1])], 0, now, CANVASES, refuse)
    assert engine.calls == ["forward"]


@pytest.mark.parametrize("conditioning", ["canvas", "latent", "prefix"])
def test_a_step_of_the_other_conditionings(conditioning: str) -> None:
    """The baselines of MAGVIT's ablation: a condition that is fixed, or put before the latents, costs nothing."""
    now = config(tasks=("OPV",), loss=CommitLossConfig(label_smoothing=0.0))
    size = 16 if conditioning == "prefix" else 0
    now = replace(now, model=replace(now.model, conditioning=conditioning, num_condition_tokens=size))
    batch, engine = random_batch([40, 41]), Engine(build(now))
    plain = copy.deepcopy(engine.module)
    metrics = commit_step(engine, [batch], 3, now, CANVASES, accept)
    condition = condition_of_batch(batch["tokens"], ["OPV"] * 2, CANVASES, now.model)
    parts = assign(batch["tokens"][:, 0].flatten(1), condition, draw_masked(now, 3, [40, 41], ~condition.is_fixed))
    prompt = build_prompt(["OPV"] * 2, batch["label"], now.model)
    logits = plain.latent_logits(plain.build_sequence(*prompt, parts.inputs, condition.before))
    losses = F.cross_entropy(logits.transpose(1, 2), batch["tokens"][:, 0].flatten(1), reduction="none")
    asked = torch.ones(2, NUM_TOKENS, dtype=torch.bool) if size else ~latent_mask("OPV", LATENT, now.model).flatten()
    assert metrics["loss/refine"].item() == 0
    assert metrics["loss/total"].item() == pytest.approx(losses[asked.expand(2, -1)].mean().item(), rel=1e-5)


class OnFakeGpu:
    """An engine without updates: what waits for a GPU there is DeepSpeed's matter."""

    def __init__(self) -> None:
        with torch.device("meta"):
            self.module = CommitTransformer(config().model)

    def __call__(self, sequence: Tensor) -> Tensor:
        return self.module(sequence)

    def backward(self, loss: Tensor) -> None:
        assert loss.device.type == "cuda"

    def step(self) -> Tensor:
        return torch.zeros(())


@pytest.mark.parametrize("one_task_per_step", [True, False])
def test_a_step_draws_and_looks_at_no_value_on_the_device(one_task_per_step: bool) -> None:
    engine, positions = OnFakeGpu(), torch.arange(3)
    with fake_gpu():
        engine.module.to_empty(device="cuda")
        tokens = torch.zeros((3, len(CANVASES), *LATENT), dtype=torch.int64, device="cuda")
        batch = {"tokens": tokens, "label": torch.zeros_like(tokens[:, 0, 0, 0, 0]), "position": positions}
        now = config(one_task_per_step=one_task_per_step)
        metrics = commit_step(engine, [batch], 0, now, CANVASES, lambda _: None)
        assert metrics["mask/ratio"].device.type == "cuda"
