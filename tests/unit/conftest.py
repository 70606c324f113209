"""A tiny experiment on images in memory, for planning."""

import pytest

from ssdistill.chain.plan import models_of
from ssdistill.chain.workspace import Workspace
from ssdistill.experiment.reading import load_experiment
from ssdistill.settings.registry import SOURCES

TINY = """
schema: 1
name: tiny
seeds: [0, 1]
data: digits
teacher: {encoder: {name: resnet10t, stem_stride: 2, args:
  {layers: [1, 1, 0, 0], channels: [8, 16, 16, 16], stem_type: deep, stem_width: 8}}}
student: {encoder: {name: resnet10t, stem_stride: 2, args:
  {layers: [1, 1, 0, 0], channels: [8, 8, 8, 8], stem_type: deep, stem_width: 8}}}
pretrain: {kind: simclr, steps: 9, batch_size: 8}
distill:
  steps: 6
  batch_size: 8
  losses: {feature: {kind: simreg}, contrast: {kind: infonce}}
compress:
  - {kind: prune, ratio: 0.5}
  - {kind: recover, steps: 2, batch_size: 8}
  - {kind: quantize}
"""


@pytest.fixture
def make_workspace(tmp_path, make_store):
    """``make_workspace("key=value", …)``: the tiny experiment over images in memory."""

    def make(*overrides, has_labels=True, train="f" * 64, teacher=True):
        path = tmp_path / "tiny.yaml"
        lines = TINY.splitlines()
        path.write_text("\n".join(lines if teacher else lines[:5] + lines[7:]))
        experiment, _ = load_experiment(path, list(overrides))
        source = SOURCES.build(experiment.data)
        source.has_labels = has_labels
        stores = make_store(fingerprint=train), make_store(fingerprint="e" * 64)
        return Workspace(experiment, tmp_path / "runs", source, *stores)

    return make


@pytest.fixture
def models(make_workspace):
    """``models("key=value", …)``: the stages of one seed that make an encoder."""
    return lambda *overrides, seed=0, **facts: models_of(make_workspace(*overrides, **facts), seed)
