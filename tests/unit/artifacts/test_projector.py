"""The projector an encoder was pretrained with, from the method to the file and back."""

from types import SimpleNamespace

import pytest
import torch
from lightly.models.modules.heads import ProjectionHead
from torch import nn

from ssdistill.artifacts.artifact import load, save_encoder
from ssdistill.artifacts.heads import LAYERS, pack_head, unpack_head
from ssdistill.chain import training
from ssdistill.distill.distiller import Distiller, shapes
from ssdistill.errors import UserError
from ssdistill.losses.kd import KD
from ssdistill.settings.registry import METHODS


def trained_projector(method):
    """Its projector after batch norm has seen something, so that no statistic is a default."""
    projector = method.projector
    for parameter in projector.parameters():
        nn.init.normal_(parameter)
    for _ in range(3):
        projector.train()(3 * torch.randn(16, method.encoder.embed_dim) + 1)
    return projector


@pytest.fixture(params=("simclr", "byol"))
def encoder(request, make_encoder):
    """An encoder with the projector of one method."""
    encoder = make_encoder()
    method = METHODS.build(METHODS.schema(request.param)(steps=1), encoder)
    encoder.projector = trained_projector(method)
    return encoder.eval()


@torch.no_grad()
def test_the_projection_comes_back_bit_by_bit(encoder, tmp_path):
    save_encoder(encoder, tmp_path)
    found = load(tmp_path)
    assert not any(module.training for module in found.modules())
    assert found.projection_dim == encoder.projection_dim
    found.project = encoder.project = True
    x_BCHW = torch.rand(5, 3, 16, 16)
    assert torch.equal(found(x_BCHW).projection_BP, encoder(x_BCHW).projection_BP)
    assert torch.equal(found(x_BCHW).embedding_BD, encoder(x_BCHW).embedding_BD)


@torch.no_grad()
def test_a_loaded_encoder_says_nothing_of_its_projection_unless_asked(encoder, tmp_path):
    save_encoder(encoder, tmp_path)
    assert load(tmp_path)(torch.rand(2, 3, 16, 16)).projection_BP is None


def test_a_loaded_projector_can_be_saved_again(encoder, tmp_path):
    for name in ("first", "second"):
        save_encoder(encoder, tmp_path / name)
        encoder = load(tmp_path / name)
    contents = [(tmp_path / n / "projector.safetensors").read_bytes() for n in ("first", "second")]
    assert contents[0] == contents[1]


def test_the_memory_format_and_the_mode_do_not_reach_the_file(encoder, tmp_path):
    save_encoder(encoder, tmp_path / "plain")
    save_encoder(encoder.to(memory_format=torch.channels_last).train(), tmp_path / "other")
    names = ("model.safetensors", "projector.safetensors")
    for name in names:
        contents = [(tmp_path / f / name).read_bytes() for f in ("plain", "other")]
        assert contents[0] == contents[1]


def test_loading_draws_no_random_numbers_for_the_projector(encoder, tmp_path):
    head, layers = pack_head(encoder.projector)
    state = torch.get_rng_state()
    unpack_head(head, LAYERS.validate_python(layers), encoder.embed_dim)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_kind_of_layer_is_described_as_it_is():
    head = ProjectionHead(
        [
            (6, 5, nn.BatchNorm1d(5), nn.ReLU()),
            (5, 4, None, nn.ReLU()),
            (4, 3, nn.BatchNorm1d(3, eps=1e-3, affine=False), None, True),
        ]
    ).eval()
    for module in head.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    content, layers = pack_head(head)
    kinds = ["linear", "batch_norm", "relu", "linear", "relu", "linear", "batch_norm"]
    assert [layer["kind"] for layer in layers] == kinds
    found = unpack_head(content, LAYERS.validate_python(layers), 6)
    x_BD = torch.randn(4, 6)
    assert torch.equal(found(x_BD), head(x_BD))


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.Tanh()), "Tanh"),
        (Residual(nn.Linear(4, 4)), "Residual"),
    ],
)
def test_a_head_no_file_can_describe_is_refused_by_name(head, name):
    with pytest.raises(UserError, match=name):
        pack_head(head)


@pytest.mark.parametrize("kind", ("simclr", "byol"))
def test_a_pretraining_stage_exports_the_trained_projector(kind, make_encoder, monkeypatch):
    method = METHODS.build(METHODS.schema(kind)(steps=1), make_encoder())
    exported = []
    monkeypatch.setattr(training, "task_of", lambda stage, workspace: (method, None))
    monkeypatch.setattr(training, "train", lambda *_: {"loss/total": 1.0})
    monkeypatch.setattr(training, "export", lambda encoder, *_: exported.append(encoder))
    metrics = training.pretrain(SimpleNamespace(), SimpleNamespace(), SimpleNamespace())
    assert metrics == {"loss/total": 1.0}
    assert exported == [method.encoder]
    assert method.encoder.projector is method.projector is not None


def test_a_loss_reads_the_projection_of_a_loaded_teacher(encoder, make_encoder, tmp_path):
    save_encoder(encoder, tmp_path)
    teacher, student = load(tmp_path), make_encoder(seed=1)
    facts = shapes(student, teacher, num_samples=32)
    assert facts.teacher_projection_dim == encoder.projection_dim
    assert facts.student_projection_dim is None
    loss = KD(facts, logits="projection")
    Distiller(student, teacher, {"logits": loss})
    assert loss.reads_projection and loss.num_logits == encoder.projection_dim
    x_BCHW = torch.rand(2, 3, 16, 16)
    expected = teacher.projector(teacher(x_BCHW).embedding_BD)
    assert torch.equal(teacher(x_BCHW).projection_BP, expected)
