"""The online probe, and where labels may be read."""

import ast
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import ssdistill
from ssdistill.errors import UserError
from ssdistill.evaluate.probes.online_probe import LEARNING_RATE, MOMENTUM, OnlineProbe

PACKAGE = Path(ssdistill.__file__).parent


class Labeled:
    """A store that notes which file reads its labels."""

    def __init__(self, labels):
        self._labels, self.readers = labels, []

    def __len__(self):
        return len(self._labels)

    @property
    def labels(self):
        self.readers.append(Path(sys._getframe(1).f_code.co_filename))
        return self._labels


def step(probe, *views, index=None):
    index_B = torch.arange(len(views[0])) if index is None else torch.tensor(index)
    task = SimpleNamespace(last_embeddings=list(views))
    found = probe.after_step(0, SimpleNamespace(index_B=index_B), task)
    return float(found["probe/online/top1"])


def blobs(label_N, width=8, seed=0):
    """Embeddings around one far-away center a class, all shifted and small."""
    generator = torch.Generator().manual_seed(seed)
    center_KD = torch.randn(10, width, generator=generator)
    noise_ND = torch.randn(len(label_N), width, generator=generator)
    return 5 + 1e-3 * (center_KD[torch.as_tensor(label_N)] + 0.1 * noise_ND)


def test_it_learns_what_can_be_told_apart():
    label_N = np.arange(60) % 3
    probe = OnlineProbe(Labeled(label_N), 8)
    top1 = [step(probe, blobs(label_N, seed=0)) for _ in range(200)]
    assert top1[0] == pytest.approx(100 / 3, abs=1e-3)
    assert top1[-1] > 99


def test_it_stays_at_chance_on_labels_that_mean_nothing():
    label_N = np.random.default_rng(0).integers(0, 4, 400)
    probe = OnlineProbe(Labeled(label_N), 8)
    generator = torch.Generator().manual_seed(1)
    for _ in range(60):
        top1 = step(probe, torch.randn(400, 8, generator=generator))
    assert top1 == pytest.approx(25, abs=6)


def test_each_step_is_scored_before_it_is_learnt_from():
    """The first score is that of a classifier of zeros, whatever could be learnt in one step."""
    label_N = np.array([1, 1, 1, 0])
    probe = OnlineProbe(Labeled(label_N), 8)
    z_ND = blobs(label_N)
    # All logits are equal, and the first class is taken: one of four is right.
    first = step(probe, z_ND)
    assert first == pytest.approx(25)
    second = 100 * (1 - MOMENTUM) * (0.25 * MOMENTUM + 1.0) / (1 - MOMENTUM**2)
    assert step(probe, z_ND) == pytest.approx(second, rel=1e-5)


def test_its_first_step_is_adams_on_standardized_features():
    label_N = np.array([0, 0, 1, 2, 2, 2])
    z_ND = blobs(label_N, width=4)
    probe = OnlineProbe(Labeled(label_N), 4)
    step(probe, z_ND)
    z = z_ND.double().numpy()
    x_ND = (z - z.mean(0)) / z.std(0)
    gradient_KD = (1 / 3 - np.eye(3)[label_N]).T @ x_ND / len(x_ND)
    # Adam's first step is the sign of the gradient.
    wanted_KD = -LEARNING_RATE * np.sign(gradient_KD)
    found_KD = probe.classifier.weight.detach().numpy()
    assert np.abs(gradient_KD).min() > 1e-4
    np.testing.assert_allclose(found_KD, wanted_KD, rtol=2e-3)


def test_labels_follow_the_index_of_the_images_in_every_view():
    label_N = np.array([7, 3, 3, 9, 7, 9])
    order = [5, 0, 3, 2, 4, 1]
    z_ND = blobs(label_N)
    ordered, shuffled = (OnlineProbe(Labeled(label_N), 8) for _ in range(2))
    for _ in range(60):
        step(ordered, z_ND, z_ND)
        top1 = step(shuffled, z_ND[order], z_ND[order], index=order)
    assert top1 > 90
    torch.testing.assert_close(shuffled.classifier.weight, ordered.classifier.weight)


def test_only_the_first_two_views_are_read():
    label_N = np.arange(6) % 2
    probes = [OnlineProbe(Labeled(label_N), 8) for _ in range(2)]
    views = [blobs(label_N, seed=seed) for seed in range(3)]
    step(probes[0], *views)
    step(probes[1], *views[:2])
    assert torch.equal(probes[0].classifier.weight, probes[1].classifier.weight)


def test_no_gradient_reaches_the_embeddings_and_nothing_is_drawn():
    label_N = np.arange(6) % 2
    z_ND = blobs(label_N).requires_grad_()
    before = torch.get_rng_state()
    probe = OnlineProbe(Labeled(label_N), 8)
    step(probe, z_ND)
    assert z_ND.grad is None
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in probe.classifier.parameters())


def test_embeddings_in_half_the_bits_are_read_in_float32():
    label_N = np.arange(30) % 3
    probe = OnlineProbe(Labeled(label_N), 8)
    step(probe, (1e3 * blobs(label_N)).bfloat16())
    assert probe.classifier.weight.dtype == torch.float32
    assert torch.isfinite(probe.classifier.weight).all()


def test_labels_that_are_no_classes_are_named():
    with pytest.raises(UserError, match="training labels must be one integer per image"):
        OnlineProbe(Labeled(np.zeros((4, 2))), 8)


def test_the_probe_reads_labels_once_and_in_the_room_that_may():
    store = Labeled(np.arange(6) % 2)
    probe = OnlineProbe(store, 8)
    for _ in range(3):
        step(probe, blobs(store._labels))
    assert store.readers == [PACKAGE / "evaluate" / "probes" / "online_probe.py"]


def test_labels_are_read_where_models_are_judged_and_nowhere_else():
    """Sources give labels and a store passes them on; everything else reads them to judge.

    Three files of checks for plug-ins compare labels with those of a source, or change them.
    """
    checks = {f"testing/{name}.py" for name in ("protocols", "protocol_traps", "sources")}
    readers = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == "labels":
                readers.add(path.relative_to(PACKAGE).as_posix())
    assert {name for name in readers if not name.startswith(("data/", "evaluate/"))} == checks


def test_what_needs_no_labels_is_built_on_nothing_that_does():
    """Of the rooms below ``evaluate`` none imports it, not even inside a function."""
    above = ("evaluate/", "experiment/", "chain/", "commands/", "api/", "testing/", "__init__.py")
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        if name.startswith(above):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            module = getattr(node, "module", None) or ""
            assert not module.startswith("ssdistill.evaluate"), f"{name} imports {module}"
