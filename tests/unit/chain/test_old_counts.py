"""MACs that version 0.1.0 counted without attention are named in the report."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
from torch import nn

from ssdistill.chain import report


def stage(checksum: str) -> SimpleNamespace:
    record = SimpleNamespace(checksum=checksum)
    return SimpleNamespace(
        record=lambda root: record, folder=lambda root: root / "evaluate-1" / "s0"
    )


@pytest.mark.parametrize(
    ("network", "checksum", "named"),
    [
        (timm.create_model("test_vit"), "", True),
        (timm.create_model("test_vit"), "ab12", False),
        (nn.TransformerEncoderLayer(8, 2), "", True),
        (timm.create_model("test_resnet"), "", False),
    ],
    ids=["vit_of_0_1_0", "vit_of_now", "torch_attention", "no_attention"],
)
def test_only_attention_counted_by_the_first_release_is_named(
    monkeypatch, network, checksum, named
):
    monkeypatch.setattr(report, "models_of", lambda workspace, seed: {"teacher": "model"})
    monkeypatch.setattr(
        report, "evaluations_of", lambda workspace, seed: {"teacher": stage(checksum)}
    )
    workspace = SimpleNamespace(
        experiment=SimpleNamespace(seeds=[0]), root=Path("runs"), encoder=lambda stage: network
    )
    notices = report._old_counts(workspace)
    assert len(notices) == named
    if named:
        assert notices[0].startswith("teacher: version 0.1.0 counted its MACs")
        assert f"delete {Path('runs/evaluate-1/s0')}" in notices[0]


def test_a_runtimes_file_has_the_macs_of_the_network_it_was_made_of(monkeypatch):
    models = {"teacher": SimpleNamespace(network=timm.create_model("test_vit"))}
    models["int8"] = SimpleNamespace(network=object(), parents={"model": models["teacher"]})
    monkeypatch.setattr(report, "models_of", lambda workspace, seed: models)
    monkeypatch.setattr(report, "evaluations_of", lambda workspace, seed: {"int8": stage("")})
    workspace = SimpleNamespace(
        experiment=SimpleNamespace(seeds=[0]),
        root=Path("runs"),
        encoder=lambda stage: stage.network,
    )
    (notice,) = report._old_counts(workspace)
    assert notice.startswith("int8: version 0.1.0 counted its MACs")
