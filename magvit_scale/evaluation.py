"""One evaluation by a protocol: its models and networks, its tasks and real clips, and the measuring of a task."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from magvit_scale.commit.names import task_named
from magvit_scale.commit.tasks import SPECS
from magvit_scale.config import DecodingConfig, EvaluateConfig, Refusal, load
from magvit_scale.measuring import Networks, add_clips, figures, load_networks, new_tally
from magvit_scale.metrics.protocol import Protocol, RealClips
from magvit_scale.metrics.selection import split_over_ranks
from magvit_scale.metrics.tally import Tally
from magvit_scale.pipeline import MagvitPipeline
from magvit_scale.progress import progress_bar
from magvit_scale.real_set import RealSet
from magvit_scale.training import distributed
from magvit_scale.training.ranks import Ranks
from magvit_scale.vqgan.autoencoder import VQGAN

RECONSTRUCTION = "reconstruction"


@dataclass(frozen=True)
class Evaluation:
    """What measures, and what is measured."""

    config: EvaluateConfig
    protocol: Protocol
    ranks: Ranks
    networks: Networks
    tokenizer: VQGAN
    pipeline: MagvitPipeline | None
    decoding: DecodingConfig

    @property
    def seed(self) -> int:
        """Of the choice of clips and of the sampling."""
        return self.protocol.seed if self.config.seed is None else self.config.seed

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        """Of a tensor on the CPU. Collective."""
        return distributed.sum_over_ranks(value.to(self.ranks.device)).cpu()


def open_evaluation(config: EvaluateConfig, protocol: Protocol, ranks: Ranks) -> Evaluation:
    """Loads models and networks.

    Raises:
        Refusal: a folder holds no such model, or weights are missing or other ones.
    """
    if config.tokenizer is None:
        raise Refusal("EvaluateConfig: no value for tokenizer; give a YAML file or KEY=VALUE")
    pipeline = None
    if config.transformer:
        pipeline = MagvitPipeline.from_pretrained(config.tokenizer, config.transformer, ranks.device)
    tokenizer = pipeline.tokenizer if pipeline else VQGAN.from_pretrained(config.tokenizer).to(ranks.device)
    paper = asdict(protocol.decoding) if protocol.decoding else {}
    decoding = load(DecodingConfig, [paper, config.decoding])
    networks = load_networks(protocol, config.networks, ranks.device)
    return Evaluation(config, protocol, ranks, networks, tokenizer, pipeline, decoding)


def choose_tasks(config: EvaluateConfig, protocol: Protocol, pipeline: MagvitPipeline | None) -> list[str]:
    """The tasks that are asked for, or else all of the protocol's that the given models can do.

    Raises:
        Refusal: none, one that is not the protocol's, or one that the models cannot do.
    """
    asked = list(dict.fromkeys(config.tasks or protocol.tasks))
    if strange := sorted(set(asked) - set(protocol.tasks)):
        raise Refusal(f"tasks={strange}: protocol {protocol.name} has {', '.join(protocol.tasks)}")
    trained = (pipeline.transformer.config.tasks or protocol.tasks) if pipeline else ()
    missing = [task for task in asked if task != RECONSTRUCTION and task not in trained]
    if missing == asked or (missing and config.tasks):
        found = f"the transformer was trained for {', '.join(trained)}" if pipeline else "and no transformer is given"
        raise Refusal(
            f"protocol {protocol.name} generates ({', '.join(missing)}), {found}; give transformer=FOLDER of one that "
            "knows these tasks"
        )
    return [task for task in asked if task not in missing]


def open_real_sets(evaluation: Evaluation, tasks: Sequence[str]) -> dict[RealClips, RealSet]:
    """The real sets of all tasks, before anything is measured by one of them.

    Raises:
        Refusal: see `RealSet.open`; or the models make clips of another size, or know other classes.
    """
    protocol, pipeline = evaluation.protocol, evaluation.pipeline
    sets: dict[RealClips, RealSet] = {}
    for task in tasks:
        rule = protocol.real_clips(task)
        if rule not in sets:
            sets[rule] = RealSet.open(evaluation.config, protocol, task, evaluation.seed)
        if pipeline is not None and task != RECONSTRUCTION:
            refuse_other_models(protocol, task, pipeline, sets[rule].videos.dataset.classes)
    return sets


def refuse_other_models(protocol: Protocol, task: str, pipeline: MagvitPipeline, classes: Sequence[str]) -> None:
    """Refuses models whose clips would be measured as what they are not.

    Raises:
        Refusal: they make clips of another length or size than the protocol's, or the task is told a class and the data
            have more, fewer or none of them.
    """
    wanted = (protocol.num_frames, protocol.size_px, protocol.size_px)
    if pipeline.clip_shape != wanted:
        raise Refusal(
            f"protocol {protocol.name}: the models make clips of (t, h, w) = {pipeline.clip_shape}, expected {wanted}; "
            "give models of that size, or another protocol"
        )
    known = pipeline.transformer.num_classes
    if SPECS[task_named(task)].is_class_conditional and len(classes) != known:
        raise Refusal(
            f"task {task}: the shards have {len(classes)} classes, the transformer knows {known}; give the shards with "
            "the classes that it was trained on"
        )


def measure(evaluation: Evaluation, task: str, real: RealSet) -> dict[str, list[float]]:
    """The figures of a task, `TASK/METRIC` -> a value of each fold. Collective."""
    protocol, networks, ranks = evaluation.protocol, evaluation.networks, evaluation.ranks
    num_clips = protocol.num_folds * protocol.num_generated
    tally = new_tally(protocol, task, networks, evaluation.tokenizer.config.codebook_size)
    own = split_over_ranks(num_clips, ranks.rank, ranks.world_size)
    sources = [real.source_of(place) for place in range(num_clips)]
    with progress_bar(task, len(own), unit="clip", is_shown=ranks.is_main) as bar:
        clips = real.read([sources[place] for place in own], evaluation.config, ranks.device)
        for start, (given, labels) in zip(own[:: evaluation.config.batch_size], clips, strict=True):
            places = torch.arange(len(given)) * ranks.world_size + start
            made = make(evaluation, task, tally, places, given, labels)
            add_clips(tally, protocol, networks, places, made, given)
            bar.update(len(given))
    tally.join(evaluation.sum_over_ranks)
    return figures(tally, real.statistics, protocol, task, networks, [real.clips[source] for source in sources])


@torch.no_grad()
def make(evaluation: Evaluation, task: str, tally: Tally, places: Tensor, given: Tensor, labels: Tensor) -> Tensor:
    """Clips of a task, 'b 3 t h w' in [0, 1]; the seed of each is its place's."""
    if task == RECONSTRUCTION or evaluation.pipeline is None:
        token_ids = evaluation.tokenizer.tokenize(given)
        tally.add_codes(token_ids)
        return evaluation.tokenizer.detokenize(token_ids)
    made = evaluation.pipeline(
        task,
        condition=None if task == "CG" else given,
        label=labels,
        decoding=evaluation.decoding,
        seed=(places + evaluation.seed).tolist(),
    )
    return made.clips
