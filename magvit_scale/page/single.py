"""The page of one RUN folder: what its networks do, how they were trained, on what, and how to do it again."""

from magvit_scale.config import TASKS
from magvit_scale.page import sections
from magvit_scale.page.curves import training
from magvit_scale.page.document import Section, document
from magvit_scale.page.evaluations import Alike, evaluations_section
from magvit_scale.page.record import Record
from magvit_scale.page.tables import definitions

LEDE = (
    "MAGVIT turns a video into a small grid of tokens and learns to fill in the tokens that are missing; by choosing "
    "which are missing, one network predicts, interpolates, in- and outpaints and invents clips. "
)
LEDE_OF_MODELS = (
    "This page shows what the networks of this run do on clips they were not trained on, beside the simplest "
    "things that could do the same."
)
LEDE_OF_TRAINING = "This page shows how the training went."


def render(record: Record) -> str:
    """The page's HTML; the same inputs give the same bytes."""
    shows_models = record.samples or record.results or record.evaluations
    lede = LEDE + (LEDE_OF_MODELS if shows_models else LEDE_OF_TRAINING)
    return document(record.name, lede, sections.warning(record.runs, record.evaluations), _sections(record))


def _sections(record: Record) -> list[Section]:
    results = record.results
    return [
        Section(
            "gates",
            "Does it learn?",
            "Claims about held-out clips, each beside a baseline that is hard to fool.",
            sections.gates(record.gates),
        ),
        Section(
            "reconstructions",
            "Reconstruction",
            "Held-out clips, squeezed into tokens and back: what is lost here, no later stage can bring back.",
            sections.reconstructions(record.reconstructions, record.fps),
        ),
        Section(
            "tasks",
            "Ten tasks, one network" if record.samples and len(record.samples.tasks) == len(TASKS) else "Samples",
            "Left what the network was given, in the middle what it made of it, right what really happened.",
            sections.tasks(record.samples),
        ),
        Section(
            "decoding",
            "Decoding, step by step",
            "All tokens are guessed at once, the surest are kept and the rest guessed again. Under each picture: the "
            "tokens kept so far, one grid per latent frame.",
            sections.trajectories(record.samples),
        ),
        Section(
            "training",
            "Training",
            "Thin: as logged. Thick: smoothed. The number is the last value.",
            training(record.runs),
        ),
        Section("codebook", "Codebook", "The tokenizer's vocabulary on held-out clips.", sections.codebook(results)),
        Section("figures", "Figures", "All figures are of held-out clips.", sections.evaluation_tables(results)),
        Section(
            "protocols",
            "Figures by protocol",
            "Everything that decides a figure besides the model is in its protocol's hash; a paper's figures stand "
            "beside it only where they were taken in the same way.",
            evaluations_section(
                [Alike(evaluations={each.name: each}, papers=each.papers, reasons=()) for each in record.evaluations]
            ),
        ),
        Section(
            "reproduce",
            "Reproduce",
            "From the repository's folder, in this order:",
            sections.reproduce(record.commands, record.runs),
        ),
        Section("environment", "Environment", "What this was made on.", definitions(record.environment)),
    ]
