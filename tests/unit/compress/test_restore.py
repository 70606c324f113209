import json
from pathlib import Path

import pytest
import torch

from ssdistill.artifacts.artifact import load, save_encoder
from ssdistill.commands.main import main
from ssdistill.compress import Context
from ssdistill.compress.restore import Restore, uncompressed_parent
from ssdistill.errors import UserError

DIGEST = "0123456789abcdef"


def folders(root):
    stages = root / "stages"
    return stages / f"distill-{DIGEST[:8]}/s1/model", stages / "compress-ffffffff/s1/model"


@pytest.fixture
def compressed(tmp_path, make_encoder):
    """A dense artifact and one that was made from it, as a run leaves them."""
    dense, made = folders(tmp_path)
    sha256 = save_encoder(make_encoder(0), dense)
    parent = {"digest": DIGEST, "seed": 1, "sha256": sha256}
    save_encoder(make_encoder(1), made, {"parents": {"model": parent, "original": parent}})
    return made


def test_the_step_gives_back_a_copy_of_the_original(make_encoder):
    original, other = make_encoder(0), make_encoder(1)
    context = Context(lambda n, seed: torch.zeros(0), Path(), original=original)
    found = Restore().apply(other, context)
    assert found is not original
    weights = found.net.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in original.net.state_dict().items())
    with pytest.raises(UserError, match=r"restore requires context\.original"):
        Restore().apply(other, Context(lambda n, seed: torch.zeros(0), Path()))


def test_the_dense_parent_is_found_by_lineage_and_can_be_copied(compressed, tmp_path, capsys):
    dense, _ = folders(tmp_path)
    assert uncompressed_parent(compressed) == dense
    assert main(["restore", str(compressed.parent), "--to", str(tmp_path / "copy")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "copy")
    pair = [load(folder).net.state_dict() for folder in (dense, tmp_path / "copy")]
    assert all(torch.equal(v, pair[1][k]) for k, v in pair[0].items())
    assert main(["restore", str(compressed), "--to", str(tmp_path / "copy")]) == 2
    assert "the folder is not empty" in capsys.readouterr().err


def test_what_was_not_compressed_has_no_parent_to_go_back_to(compressed, tmp_path):
    with pytest.raises(UserError, match="not a compressed model: its lineage names no original"):
        uncompressed_parent(folders(tmp_path)[0])


def test_a_parent_that_has_changed_or_gone_is_refused(compressed, tmp_path):
    description = folders(tmp_path)[0] / "model.json"
    facts = json.loads(description.read_text())
    description.write_text(json.dumps({**facts, "sha256": "0" * 64}))
    with pytest.raises(UserError, match=r"sha256 000000000000…, but .* was made from"):
        uncompressed_parent(compressed)
    description.unlink()
    with pytest.raises(UserError, match=r"its uncompressed parent 01234567, seed 1, is missing"):
        uncompressed_parent(compressed)
