"""Published folders: complete, readable by the card's own words, the same each time, and nothing in them untrue."""

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import DecodingConfig, Refusal
from magvit_scale.metrics.protocols import PROTOCOLS
from magvit_scale.metrics.results import Result, build_result, write_result
from magvit_scale.pipeline import MagvitPipeline
from magvit_scale.pretrained import hash_model
from magvit_scale.publish import main
from magvit_scale.vqgan.autoencoder import VQGAN
from tests.finished_runs import STEPS, write_runs
from tests.stand_in_hub import StandIn, install
from tests.tiny_tokens import write_tokenizer

CLASSES = ["bounce", "fall", "orbit", "oscillate", "pass_behind", "pulse", "rotate", "zigzag"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders, not to be changed."""
    return write_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return install(monkeypatch, tmp_path / "cache")


@pytest.fixture
def own_runs(runs: Path, tmp_path: Path) -> Path:
    """A copy whose files may be changed; data sets are still those of `runs`."""
    for name in ("vqgan", "commit"):
        shutil.copytree(runs / name, tmp_path / name)
    return tmp_path


def words(runs: Path, output: Path, *more: str) -> list[str]:
    return [f"tokenizer={runs / 'vqgan/export'}", f"transformer={runs / 'commit/export'}", f"output={output}", *more]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def front_matter(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def row(folder: Path, name: str) -> list[str]:
    (line,) = [line for line in (folder / "README.md").read_text().splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("| ").split("|")][1:]


def unknown(folder: Path) -> str:
    return (folder / "README.md").read_text().split("## What is not known\n")[1]


def refusal(argv: list[str]) -> str:
    with pytest.raises(Refusal) as error:
        main(argv)
    assert "\n" not in str(error.value)
    return str(error.value)


def run_the_example(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a reader of the card does, in the folder from which `name` is reached."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert f'"{name}"' in code
    monkeypatch.chdir(str(folder).removesuffix(name))
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def result_of(runs: Path, **changes: Any) -> Result:
    models = {"tokenizer": hash_model(runs / "vqgan/export"), "transformer": hash_model(runs / "commit/export")}
    result = build_result(
        PROTOCOLS["magvit-ucf101-cg"], folds={"CG/FVD": [70.0, 80.0]}, weights={"feature_network": "random"},
        models=models, decoding=DecodingConfig(), seeds={"clips": 3}, data={"shards": "0f"}, device="cpu",
    )  # fmt: skip
    return replace(result, **changes)


def test_a_pair_becomes_a_folder_that_the_pipeline_reads(runs: Path, tmp_path: Path) -> None:
    main(words(runs, tmp_path / "toy"))
    assert sorted(contents(tmp_path / "toy")) == [
        "README.md",
        "model_index.json",
        "tokenizer/config.json",
        "tokenizer/model.safetensors",
        "tokenizer/preprocessor_config.json",
        "transformer/config.json",
        "transformer/model.safetensors",
    ]
    index = json.loads((tmp_path / "toy/model_index.json").read_text())
    assert index.pop("version")
    assert index == {
        "model": "MagvitPipeline",
        "tokenizer": "tokenizer",
        "transformer": "transformer",
        "classes": CLASSES,
        "fps": None,
    }
    assert json.loads((tmp_path / "toy/tokenizer/preprocessor_config.json").read_text()) == {
        "num_frames": 4,
        "size_px": 16,
        "frame_stride": 1,
        "fps": None,
        "value_range": [0, 1],
        "layout": "b c t h w",
        "dtype": "float32",
    }
    pipes = [
        MagvitPipeline.from_pretrained(tmp_path / "toy/tokenizer", tmp_path / "toy/transformer"),
        MagvitPipeline.from_pretrained(runs / "vqgan/export", runs / "commit/export"),
    ]
    clips = [pipe("CG", label=3, seed=1).clips for pipe in pipes]
    assert torch.equal(*clips)


def test_the_card_tells_what_the_runs_say_and_nothing_of_the_machine(runs: Path, tmp_path: Path) -> None:
    main(words(runs, tmp_path / "toy"))
    folder, text = tmp_path / "toy", (tmp_path / "toy/README.md").read_text()
    data = [json.loads((runs / f"{run}/checkpoints/step_{STEPS:08d}/state.json").read_text())["data"]
            for run in ("vqgan", "commit")]  # fmt: skip
    assert row(folder, "fingerprint of the data") == data
    assert row(folder, "step of these weights") == ["7", "7"]
    assert row(folder, "samples per step") == ["2", "4"]
    assert row(folder, "ranks") == ["3", "3"]
    assert row(folder, "precision") == ["bf16", "fp32"]
    assert row(folder, "last logged losses") == ["loss/total 2", "loss/total 2"]
    assert row(folder, "tasks")[1] == "FP, CG x 2"
    assert "UNTRAINED" in row(folder, "perceptual loss")[0]
    models = (VQGAN.from_pretrained(runs / "vqgan/export"), CommitTransformer.from_pretrained(runs / "commit/export"))
    assert row(folder, "parameters") == [f"{sum(p.numel() for p in model.parameters()):,}" for model in models]
    files = [folder / part / "model.safetensors" for part in ("tokenizer", "transformer")]
    hashes = [f"`{hashlib.sha256(file.read_bytes()).hexdigest()}`" for file in files]
    assert row(folder, "sha256 of model.safetensors") == hashes
    assert "secret-host" not in text
    assert str(runs) not in text
    matter = front_matter(folder)
    assert matter["license"], matter["library_name"] == ("apache-2.0", "magvit_scale")
    assert matter["pipeline_tag"] == "video-to-video"
    assert not {"model-index", "datasets"} & matter.keys()
    assert "no result of `magvit evaluate` was given" in unknown(folder)
    assert "frame rate" in unknown(folder)
    assert "classes" not in unknown(folder)


@pytest.mark.parametrize("name", ["toy", "acme/toy"])
def test_the_cards_example_runs(
    name: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: StandIn
) -> None:
    folder = tmp_path / name
    main(words(runs, folder, *(["push=acme/toy"] if "/" in name else [])))
    names = run_the_example(folder, name, monkeypatch)
    assert names["clips"].shape == (1, 3, 4, 16, 16)
    assert 0 <= names["clips"].min() < names["clips"].max() <= 1


def test_a_tokenizer_alone_is_a_model_folder_itself(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main([f"tokenizer={runs / 'vqgan/export'}", f"output={tmp_path / 'toy'}", "fps=12.5", "datasets=[acme/shapes]"])
    assert sorted(contents(tmp_path / "toy")) == [
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json",
    ]  # fmt: skip
    assert json.loads((tmp_path / "toy/preprocessor_config.json").read_text())["fps"] == 12.5
    names = run_the_example(tmp_path / "toy", "toy", monkeypatch)
    assert names["ids"].shape == (1, 2, 8, 8)
    assert names["reconstruction"].shape == names["clip"].shape == (1, 3, 4, 16, 16)
    assert front_matter(tmp_path / "toy")["datasets"] == ["acme/shapes"]
    assert "pipeline_tag" not in front_matter(tmp_path / "toy")
    # What was published is published again from there: what is known of the clips travels with it.
    main([f"tokenizer={tmp_path / 'toy'}", f"output={tmp_path / 'again'}"])
    first, second = (contents(tmp_path / name) for name in ("toy", "again"))
    assert {name for name in first if first[name] != second[name]} == {"README.md"}
    assert row(tmp_path / "again", "run") == ["not known"]


def test_the_same_is_written_to_the_same_bytes_after_any_end(runs: Path, tmp_path: Path) -> None:
    main(words(runs, tmp_path / "toy"))
    first = contents(tmp_path / "toy")
    for name in ("model_index.json", "README.md", "transformer/model.safetensors"):
        (tmp_path / "toy" / name).unlink()
    (tmp_path / "toy" / "transformer" / "model.safetensors.elsewhere-1.tmp").write_bytes(b"half")
    main(words(runs, tmp_path / "toy"))
    (tmp_path / "toy" / "transformer" / "model.safetensors.elsewhere-1.tmp").unlink()
    assert contents(tmp_path / "toy") == first


def test_a_folder_of_other_models_or_of_something_else_is_refused_unchanged(runs: Path, tmp_path: Path) -> None:
    main(words(runs, tmp_path / "toy"))
    before = contents(tmp_path / "toy")
    other = write_tokenizer(tmp_path / "other", seed=5)
    text = refusal([f"tokenizer={other}", f"output={tmp_path / 'toy'}"])
    assert "expected no weights here" in text
    shutil.copytree(tmp_path / "other", tmp_path / "in_its_place/tokenizer")
    text = refusal(words(runs, tmp_path / "in_its_place"))
    assert hash_model(other) in text
    assert hash_model(runs / "vqgan/export") in text
    assert contents(tmp_path / "toy") == before
    (tmp_path / "project").mkdir()
    (tmp_path / "project/README.md").write_text("mine")
    assert "holds README.md and no models" in refusal(words(runs, tmp_path / "project"))
    assert (tmp_path / "project/README.md").read_text() == "mine"


def test_a_transformer_of_another_tokenizer_is_refused(runs: Path, own_runs: Path) -> None:
    write_tokenizer(own_runs / "vqgan/export", seed=5)
    text = refusal(words(own_runs, own_runs / "toy"))
    assert hash_model(own_runs / "vqgan/export") in text
    assert hash_model(runs / "vqgan/export") in text


def test_what_no_file_says_is_said_to_be_unknown(own_runs: Path) -> None:
    """Shards that changed after training, weights of no checkpoint, and a model outside a run folder."""
    state = own_runs / f"commit/checkpoints/step_{STEPS:08d}/state.json"
    state.write_text(state.read_text().replace('"data": "', '"data": "0'))
    sizes = {path.name: path.stat().st_size for path in state.parent.iterdir() if path.name != "COMPLETE"}
    (state.parent / "COMPLETE").write_text(json.dumps({"files": sizes}))
    model = CommitTransformer.from_pretrained(own_runs / "commit/export")
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(own_runs / "commit/export")
    shutil.copytree(own_runs / "vqgan/export", own_runs / "copy")
    folder = own_runs / "toy"
    argv = [f"tokenizer={own_runs / 'copy'}", f"transformer={own_runs / 'commit/export'}", f"output={folder}"]
    main(argv)
    assert json.loads((folder / "model_index.json").read_text())["classes"] == []
    assert json.loads((folder / "tokenizer/preprocessor_config.json").read_text())["frame_stride"] is None
    assert row(folder, "step of these weights")[1] == "not known"
    for words_ in (
        "How the tokenizer was trained",
        "Of which step the transformer's weights are",
        "Whether the transformer was trained on tokens of this tokenizer",
        "The names of the 8 classes",
    ):
        assert words_ in unknown(folder)
    main([*argv, "classes=[a,b,c,d,e,f,g,h]"])
    assert json.loads((folder / "model_index.json").read_text())["classes"] == list("abcdefgh")
    assert "classes: 2 names, the transformer has 8 classes" in refusal([*argv, "classes=[a,b]"])


def test_a_results_figures_stand_in_the_card_and_in_its_index(runs: Path, tmp_path: Path) -> None:
    write_result(tmp_path / "result.json", result_of(runs))
    main(words(runs, tmp_path / "toy", f"results=[{tmp_path / 'result.json'}]"))
    assert row(tmp_path / "toy", "CG/FVD") == ["75", "5"]
    assert "no result" not in unknown(tmp_path / "toy")
    (model,) = front_matter(tmp_path / "toy")["model-index"]
    assert model["name"] == "toy"
    assert [entry["metrics"][0]["value"] for entry in model["results"]] == [75.0]


def test_a_result_of_other_models_is_refused_with_both_hashes(runs: Path, tmp_path: Path) -> None:
    own = result_of(runs)
    path, other = tmp_path / "result.json", {**own.models, "transformer": "f" * 64}
    write_result(path, replace(own, models=other))
    expected = f"{path}: is of a transformer {'f' * 64}, expected {own.models['transformer']}; evaluate this model"
    argv = words(runs, tmp_path / "toy", f"results=[{path}]")
    assert refusal(argv) == expected
    write_result(path, replace(own, models={}))
    assert "names no models" in refusal(argv)
    write_result(path, own)
    alone = [f"tokenizer={runs / 'vqgan/export'}", f"output={tmp_path / 'toy'}", f"results=[{path}]"]
    assert f"is of a transformer {own.models['transformer']}, expected None" in refusal(alone)
    assert not (tmp_path / "toy").exists()


def test_a_pushed_folder_is_sent_as_it_was_written(
    runs: Path, tmp_path: Path, hub: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    main(words(runs, tmp_path / "toy"))
    (tmp_path / "toy/notes.txt").write_text("mine")
    main(words(runs, tmp_path / "toy", "push=acme/toy"))
    assert capsys.readouterr().out.splitlines()[-1] == "https://hub/acme/toy"
    (created, (sent, told)) = hub.calls
    assert created == ("create_repo", {"exist_ok": True, "repo_id": "acme/toy"})
    assert sent == "upload_folder"
    assert (told["repo_id"], told["folder_path"]) == ("acme/toy", tmp_path / "toy")
    assert sorted(told["allow_patterns"]) == sorted(contents(tmp_path / "toy").keys() - {"notes.txt"})
    assert "token" not in told
    assert "hf download acme/toy" in (tmp_path / "toy/README.md").read_text()
