"""Names of the hub: found in its cache, never fetched; and one upload and download against a server that plays it."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from magvit_scale import publish
from magvit_scale.config import Refusal
from magvit_scale.pretrained import find_folder, hash_model, kind_of
from magvit_scale.vqgan.autoencoder import VQGAN
from tests.fake_hub import FakeHub
from tests.file_server import servers_of_handlers
from tests.stand_in_hub import StandIn, install
from tests.tiny_tokens import write_tokenizer

IS_INSTALLED = find_spec("huggingface_hub") is not None


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    monkeypatch.chdir(tmp_path)
    return install(monkeypatch, tmp_path / "cache")


def refusal(name: str) -> str:
    with pytest.raises(Refusal) as error:
        find_folder(name)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_path_that_exists_is_a_folder_and_the_cache_is_not_asked(hub: StandIn, tmp_path: Path) -> None:
    for place in ("acme/toy", "cache/acme/toy"):
        (tmp_path / place).mkdir(parents=True)
    assert find_folder("acme/toy") == Path("acme/toy")
    assert find_folder(tmp_path / "acme") == tmp_path / "acme"
    assert hub.calls == []


@pytest.mark.parametrize("name", ["toy", "/somewhere/else", "./acme/toy", "../toy", "acme/..", "acme/toy/../../x", ""])
def test_what_cannot_be_a_name_stays_a_path(name: str, hub: StandIn) -> None:
    assert find_folder(name) == Path(name)
    assert hub.calls == []


def test_a_cached_model_is_found_whole_and_by_part_without_asking_a_server(hub: StandIn, tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "cache/acme/toy-1.0/tokenizer")
    assert find_folder("acme/toy-1.0") == tmp_path / "cache/acme/toy-1.0"
    assert find_folder("acme/toy-1.0/tokenizer") == folder
    told = {"repo_id": "acme/toy-1.0", "local_files_only": True}
    assert hub.calls == [("snapshot_download", told)] * 2
    assert kind_of("acme/toy-1.0/tokenizer") == "VQGAN"
    assert hash_model("acme/toy-1.0/tokenizer") == hash_model(folder)
    loaded, expected = (VQGAN.from_pretrained(place) for place in ("acme/toy-1.0/tokenizer", folder))
    assert loaded.state_dict()["quantizer.codebook"].equal(expected.state_dict()["quantizer.codebook"])


def test_a_folder_of_parts_says_so(hub: StandIn, tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "cache/acme/toy/tokenizer")
    (tmp_path / "cache/acme/toy/model_index.json").write_text("{}")
    with pytest.raises(Refusal, match=r"acme/toy: no config\.json.*holds parts, give one as FOLDER/tokenizer"):
        VQGAN.from_pretrained("acme/toy")


def test_what_is_not_cached_is_refused_with_the_command_that_fetches_it(hub: StandIn) -> None:
    assert refusal("acme/toy/tokenizer") == (
        "acme/toy/tokenizer: no such folder, and no whole acme/toy in the cache of the Hugging Face hub; look at the "
        "path, or fetch it: hf download acme/toy"
    )


def test_without_the_package_a_name_is_refused_with_both_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert refusal("acme/toy") == (
        "acme/toy: no such folder; if it is one of the Hugging Face hub: the package huggingface_hub is not installed; "
        "pip install huggingface_hub, then hf download acme/toy"
    )


@pytest.mark.parametrize("name", ["toy", "acme/toy/tokenizer", "acme/../toy"])
def test_a_place_for_an_upload_that_is_none_is_refused_before_anything_is_written(
    name: str, hub: StandIn, tmp_path: Path
) -> None:
    tokenizer = write_tokenizer(tmp_path / "export")
    with pytest.raises(Refusal, match=f"^push={name}: expected owner/name"):
        publish.main([f"tokenizer={tokenizer}", f"output={tmp_path / 'toy'}", f"push={name}"])
    assert not (tmp_path / "toy").exists()


def test_a_hub_that_refuses_is_one_line_and_the_folder_is_complete(hub: StandIn, tmp_path: Path) -> None:
    hub.error = OSError("403\nForbidden")
    argv = [f"tokenizer={write_tokenizer(tmp_path / 'export')}", f"output={tmp_path / 'toy'}", "push=acme/toy"]
    with pytest.raises(Refusal, match=r"^push=acme/toy: 403 Forbidden; .*/toy is complete, push again"):
        publish.main(argv)
    assert (tmp_path / "toy" / "README.md").exists()


@pytest.mark.slow
@pytest.mark.skipif(not IS_INSTALLED, reason="needs the package huggingface_hub: pip install -e .[hub]")
def test_a_model_goes_up_and_comes_down_by_the_real_package(tmp_path: Path) -> None:
    """Publishes, fetches as a reader would, and loads with the server gone."""
    tokenizer = write_tokenizer(tmp_path / "export")
    handler = type("_", (FakeHub,), {"files": {}, "blobs": {}, "asked": []})
    environment = {
        **os.environ, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_secret", "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }  # fmt: skip

    def run(code: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    load = "from magvit_scale.pretrained import hash_model; print(hash_model('acme/toy'))"
    send = f"from magvit_scale.publish import main; main(['tokenizer={tokenizer}', 'output=toy', 'push=acme/toy'])"
    with servers_of_handlers() as start:
        environment["HF_ENDPOINT"] = start(handler)
        assert run(send).splitlines()[-1] == f"{environment['HF_ENDPOINT']}/acme/toy"
        run("import huggingface_hub as hub; hub.snapshot_download('acme/toy')")
    written = {path.name: path.read_bytes() for path in (tmp_path / "toy").iterdir()}
    assert handler.files == written
    assert sorted(written) == ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
    assert ("POST", "/api/repos/create", "Bearer hf_secret") in handler.asked
    assert not any(b"hf_secret" in content for content in written.values())
    (tmp_path / "toy").rename(tmp_path / "elsewhere")
    assert run(load).strip() == hash_model(tokenizer)
