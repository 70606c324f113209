"""What a run returns, or has saved, in place of a network."""

import numpy as np
import pytest
import torch
from torch import nn

import ssdistill
from ssdistill.api.networks import encoder
from ssdistill.errors import UserError

SIZE = 16
RNG = np.random.default_rng(0)
IMAGES_NHWC = RNG.integers(0, 256, (60, SIZE, SIZE, 3), dtype=np.uint8)
LABELS = np.arange(60) % 3
QUICK = {"device": {"threads": 1, "precision": "fp32", "memory_format": "contiguous"}}
SHORT = {"steps": 1, "batch_size": 20, "config": QUICK}


class Cells(nn.Module):
    def __init__(self, width: int = 16, channels: int = 3):
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.last = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()
        )

    def forward(self, x_BCHW):
        return self.last(self.first(x_BCHW)).mean((2, 3))


class Attentive(nn.Module):
    """Patches of PyTorch's own attention."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x_BCHW):
        x_BND = self.patches(x_BCHW).flatten(2).mT
        return (x_BND + self.attention(x_BND, x_BND, x_BND, need_weights=False)[0]).mean(1)


def made(**options):
    torch.manual_seed(0)
    return encoder(Cells, image_size=SIZE, **options)


def first_weight(network):
    return next(network.parameters()).detach().clone()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def distilled(root):
    return ssdistill.distill(made(), made(name="other"), IMAGES_NHWC, root=root, **SHORT)


@pytest.fixture(scope="module")
def compressed(distilled, root):
    steps = [{"kind": "prune", "macs": 0.6}]
    return ssdistill.compress(distilled, IMAGES_NHWC, steps, root=root, config=QUICK)


def test_training_goes_on_from_a_trained_student(distilled, root):
    def again(student):
        run = ssdistill.distill(student, distilled.load("teacher"), IMAGES_NHWC, root=root, **SHORT)
        return first_weight(run.load("untrained"))

    trained = first_weight(distilled.student)
    assert not torch.equal(trained, first_weight(distilled.load("untrained")))
    for student in (distilled.student, distilled, distilled.models["distilled"]):
        assert torch.equal(again(student), trained)


def test_a_compressed_student_is_no_beginning_of_training(compressed, root):
    with pytest.raises(UserError, match=r"'Cells\S*' has been compressed, and training"):
        ssdistill.distill(compressed, made(name="other"), IMAGES_NHWC, root=root, **SHORT)


def test_the_model_is_that_of_the_last_step(compressed):
    assert compressed.main == "pruned"
    assert first_weight(compressed.model).shape != first_weight(compressed.load("teacher")).shape
    advice = [notice for notice in compressed.report.notices if ": prefer " in notice]
    assert all(notice in repr(compressed) for notice in advice)


def test_it_is_embedded_and_evaluated(compressed):
    pairs = (IMAGES_NHWC[:40], LABELS[:40]), (IMAGES_NHWC[40:], LABELS[40:])
    by_result, by_model = (
        ssdistill.evaluate.knn(of, pairs, progress=False)["top1"]
        for of in (compressed, compressed.model)
    )
    assert by_result == by_model
    (z_ND, _), (again_ND, _) = (
        ssdistill.embed(of, IMAGES_NHWC, progress=False) for of in (compressed, compressed.model)
    )
    assert np.array_equal(z_ND, again_ND)


def test_embeddings_are_evaluated_without_a_network():
    z_ND = RNG.normal(size=(60, 8))
    z_ND[np.arange(60), LABELS] += 5
    pairs = (z_ND[:40], LABELS[:40]), (z_ND[40:], LABELS[40:])
    assert ssdistill.evaluate.knn(None, pairs)["top1"] > 90
    assert ssdistill.evaluate.linear(None, pairs, folds=3)["top1"] > 90
    for wrong in (pairs[:1], ((z_ND, None),) * 2, (z_ND, LABELS), None, "digits"):
        with pytest.raises(UserError, match=r"without an encoder, pass embeddings|labels"):
            ssdistill.evaluate.knn(None, wrong)
    with pytest.raises(UserError, match="of one width"):
        ssdistill.evaluate.knn(None, (pairs[0], (z_ND[40:, :4], LABELS[40:])))


@pytest.mark.parametrize("channels", [1, 5])
def test_a_module_may_take_any_number_of_channels(channels):
    statistics = {"mean": [0.5] * channels, "std": [0.25] * channels}
    network = encoder(Cells(16, channels), image_size=SIZE, **statistics)
    assert network(torch.rand(2, channels, SIZE, SIZE)).embedding_BD.shape == (2, 32)


def test_arrays_of_other_channels_are_trained_on(root):
    images = RNG.random((60, SIZE, SIZE, 5)).astype(np.float32)
    statistics = {"mean": [0.5] * 5, "std": [0.25] * 5}
    student, teacher = (
        encoder(Cells(width, 5), image_size=SIZE, name=f"five{width}", **statistics)
        for width in (16, 24)
    )
    config = {**QUICK, "data": {"channels": [0, 1, 2, 3, 4]}}
    run = ssdistill.distill(student, teacher, images, root=root, **{**SHORT, "config": config})
    assert first_weight(run.student).shape[1] == 5


def test_pytorchs_attention_is_exported(root):
    network = encoder(Attentive(), image_size=SIZE)
    run = ssdistill.compress(network, IMAGES_NHWC, ["export"], root=root, config=QUICK)
    assert "exported_onnxruntime" in run.models
