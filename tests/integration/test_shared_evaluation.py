"""An evaluation by two processes is that of one: features to the last bit, probes to rounding."""

import json
from pathlib import Path

import numpy as np
import pytest
from forked import run_forked
from test_several_processes import environment

WORDS = (
    "run", "quickstart", "pretrain.batch_size=32", "pretrain.steps=2", "distill=null",
    "control=null", "compress=[]", "evaluate.pixels=false", "evaluate.linear=null",
    "evaluate.low_shot=null", "evaluate.linear_sgd={steps: 6, batch_size: 64, lrs: [0.1, 0.3]}",
    "evaluate.finetune={steps: 4, batch_size: 64, head_init: normal, fraction: 0.1}",
    "evaluate.also={uneven: {kind: finetune, preset: 10pct, steps: 2, batch_size: 33}}",
    "device.accelerator=cpu", "device.threads=1", "device.precision=fp32",
    "device.memory_format=contiguous",
)  # fmt: skip
WATCHED = """
import ssdistill.data.image_set, ssdistill.label_free.features as features
from functools import cached_property
from pathlib import Path

def refuse(images):
    raise AssertionError("a label was read")

def view(images, size, real=features.eval_view):
    with Path("encoded.txt").open("a") as file:
        file.write(f"{len(images)}\\n")
    return real(images, size)

labels = cached_property(refuse)
labels.__set_name__(ssdistill.data.image_set.ImageSet, "labels")
ssdistill.data.image_set.ImageSet.labels = labels
features.eval_view = view
"""
"""What process 1 does before: it fails where a label is read, and notes what it encodes."""
COPY = """
import shutil
shutil.copytree("alone", "both", ignore=shutil.ignore_patterns("evaluate-*"))
"""
SGD = ("probe/linear_sgd/", "probe/finetune")
TRAIN, TEST, BATCH, EVALUATIONS = 1297, 500, 64, 2


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("evaluated")
    alone, both = place / "alone", place / "both"
    first = {"words": [*WORDS, "--runs", str(alone)]}
    words = [*WORDS, "--runs", str(both)]
    # The same networks are evaluated again.
    zeroth = {"words": words, "before": COPY, "cwd": str(place)}
    second = {"words": words, "before": WATCHED, "cwd": str(place)}
    one, two = run_forked([[first], [zeroth, second]], environment())
    assert one.statuses == [0], one.said
    assert two.statuses == [0, 0], two.said
    assert "done by one process" not in two.said
    return alone, both


def test_features_are_equal_to_the_last_bit_and_both_processes_encode(roots):
    alone, both = roots
    files = sorted(
        path.relative_to(alone) for path in alone.glob("stages/*/s0/gauged_features.npy")
    )
    assert len(files) == EVALUATIONS
    for file in files:
        assert np.array_equal(np.load(alone / file), np.load(both / file))
    encoded = [int(line) for line in (both.parent / "encoded.txt").read_text().split()]
    # Every second batch of the training images, of the test images, and of those for two more
    # networks: the fine-tuned ones.
    batches = -(-TRAIN // BATCH) // 2 + 3 * (-(-TEST // BATCH) // 2)
    assert len(encoded) == EVALUATIONS * batches and set(encoded) <= {BATCH, TEST % BATCH}


def test_metrics_are_equal(roots):
    files = sorted(
        path.relative_to(roots[0]) for path in roots[0].glob("stages/evaluate-*/*/run.json")
    )
    assert len(files) == EVALUATIONS
    for file in files:
        one, two = (json.loads((root / file).read_text())["metrics"] for root in roots)
        assert one.keys() == two.keys() and "probe/finetune_10pct/top1" in one
        for name, value in one.items():
            if name.startswith("time/"):
                continue
            tolerance = {"rel": 1e-5, "abs": 1e-4} if name.startswith(SGD) else {"rel": 0, "abs": 0}
            assert two[name] == pytest.approx(value, **tolerance), name
