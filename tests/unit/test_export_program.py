"""Exported programs: equal to their model, loaded by torch alone, and without a pickle or a path of this machine."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from magvit_scale.config import Refusal, VQGANConfig
from magvit_scale.export_program import DETOKENIZE, TOKENIZE, main
from magvit_scale.files import sha256
from magvit_scale.pretrained import hash_model
from magvit_scale.programs import Detokenize
from magvit_scale.vqgan.autoencoder import VQGAN
from tests.tiny_tokens import write_tokenizer

SHAPE = (4, 16, 16)
ALONE = """
import sys

sys.modules.update(dict.fromkeys(("magvit_scale", "einops", "deepspeed")))  # None: importing one fails
import torch

tokenize, detokenize = (torch.export.load(f"{sys.argv[1]}/{name}.pt2").module() for name in ("tokenize", "detokenize"))
given = torch.load(f"{sys.argv[1]}/given.pt", weights_only=True)
ids = tokenize(given["clips"])
assert torch.equal(ids, given["ids"])
torch.testing.assert_close(detokenize(ids), given["reconstruction"], rtol=0, atol=1e-5)
print(len(ids))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("model") / "export")


@pytest.fixture(scope="module")
def programs(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("programs")
    main([f"model={model}", f"output={output}", "num_frames=4", "size_px=16"])
    return output


def test_the_record_says_of_which_model_and_how_equal(model: Path, programs: Path) -> None:
    about = json.loads((programs / "program.json").read_text())
    assert about["model_sha256"] == hash_model(model)
    assert about["torch"] == torch.__version__
    assert about["clip"]["shape"] == ["b", 3, *SHAPE]
    assert {name: facts["sha256"] for name, facts in about["programs"].items()} == {
        name: sha256(programs / name) for name in (TOKENIZE, DETOKENIZE)
    }
    found = about["differences"]
    # Batches of 1 and 3, random and constant, of 2 x 8 x 8 tokens.
    assert (found["batches"], found["tokens"]) == ([1, 3], 8 * 128)
    assert found["different"] == found["near_ties"]
    assert 0 <= found["largest_clip_difference"] <= about["tolerances"]["clip"] == 1e-5
    assert about["are_equal"] is True


def test_torch_alone_loads_and_runs_them(model: Path, programs: Path, tmp_path: Path) -> None:
    """In a process whose only path to code is that of the packages, with a batch size that was never tried."""
    tokenizer = VQGAN.from_pretrained(model)
    clips = torch.rand(5, 3, *SHAPE, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        ids = tokenizer.tokenize(clips)
        given = {"clips": clips, "ids": ids, "reconstruction": tokenizer.detokenize(ids)}
    for name in (TOKENIZE, DETOKENIZE):
        (tmp_path / name).write_bytes((programs / name).read_bytes())
    torch.save(given, tmp_path / "given.pt")
    answer = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, str(tmp_path)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert answer.stdout == "5\n"


def test_a_program_holds_no_pickle_no_path_and_only_what_it_needs(model: Path, programs: Path) -> None:
    tensors = VQGAN.from_pretrained(model).state_dict()
    wanted = {TOKENIZE: ("encoder.", "quantizer."), DETOKENIZE: ("decoder.", "quantizer.")}
    for name, parts in wanted.items():
        with zipfile.ZipFile(programs / name) as archive:
            members = {member.partition("/")[2]: archive.read(member) for member in archive.namelist()}
        settings = json.loads(members["data/weights/model_weights_config.json"])["config"]
        assert not any(entry["use_pickle"] for entry in settings.values())
        assert json.loads(members["data/constants/model_constants_config.json"])["config"] == {}
        assert members["data/sample_inputs/model.pt"] == b""
        assert {key.removeprefix("model.") for key in settings} == {key for key in tensors if key.startswith(parts)}
        # A pickle of protocol 2 or later begins so, and so does the zip in which torch.save puts one.
        assert not [key for key, content in members.items() if content.startswith((b"\x80\x02", b"PK\x03\x04"))]
        assert not any(str(Path(__file__).parents[2]).encode() in content for content in members.values())


def test_a_2d_model_becomes_programs_for_the_clips_that_its_folder_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = VQGANConfig(
        ndim=2, base_channels=4, channel_multipliers=(1, 1), num_res_blocks=1, temporal_downsample=(True,),
        embedding_dim=4, codebook_size=8, num_groups=2,
    )  # fmt: skip
    VQGAN(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"num_frames": 3, "size_px": 8, "layout": "b c t h w"})
    )
    main([f"model={tmp_path}", f"output={tmp_path / 'programs'}"])
    detokenize = torch.export.load(tmp_path / "programs" / DETOKENIZE).module()
    assert detokenize(torch.zeros(4, 3, 4, 4, dtype=torch.int64)).shape == (4, 3, 3, 8, 8)


def test_unequal_programs_end_the_program_and_are_recorded(
    model: Path, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Detokenize, "forward", lambda self, ids: self.model.detokenize(ids).clamp(0.1, 0.9))
    argv = [f"model={model}", f"output={tmp_path}", "num_frames=4", "size_px=16"]
    with pytest.raises(Refusal, match="are not the model"):
        main(argv)
    assert json.loads((tmp_path / "program.json").read_text())["are_equal"] is False
    # The half that is the same is so to the byte.
    assert (tmp_path / TOKENIZE).read_bytes() == (programs / TOKENIZE).read_bytes()
    assert (tmp_path / DETOKENIZE).read_bytes() != (programs / DETOKENIZE).read_bytes()


def test_without_a_word_on_its_clips_a_model_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"nothing beside it says what clips it is for; give num_frames= and size_px="):
        main([f"model={model}", f"output={tmp_path}"])
    assert list(tmp_path.iterdir()) == []
