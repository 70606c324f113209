import copy

import pytest
import torch
from torch import nn

from ssdistill.distill.build import build_losses
from ssdistill.errors import UserError
from ssdistill.models.wrapped import Wrapped
from ssdistill.settings.registry import LOSSES


class Words(nn.Module):
    """Token ids (B, T) to a vector each, in a tuple as language models return it."""

    def __init__(self):
        super().__init__()
        self.embedding, self.layer = nn.Embedding(10, 6), nn.Linear(6, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x_BT):
        return (self.norm(self.layer(self.embedding(x_BT).mean(1))),)


def wrapped():
    torch.manual_seed(0)
    return Wrapped(Words().train(), torch.arange(6).view(3, 2), lambda net, x_BT: net(x_BT)[0])


def test_any_module_becomes_a_model():
    model = wrapped()
    assert (model.name, model.embed_dim) == ("Words", 4)
    assert model(model.example(3)).embedding_BD.shape == (3, 4)


def test_looking_at_a_module_leaves_its_mode_and_statistics():
    model = wrapped()
    assert model.net.training and not model.net.norm.running_mean.any()


def test_examples_are_as_many_as_asked_for_and_always_the_same():
    model = wrapped()
    assert model.example(2).tolist() == [[0, 1], [2, 3]]
    assert model.example(5)[3:].tolist() == [[0, 1], [2, 3]]


def test_the_fresh_network_is_as_it_was_and_takes_no_memory():
    model = wrapped()
    model.net.layer = nn.Linear(6, 2)
    fresh = model.fresh_net()
    assert fresh.layer.weight.shape == (4, 6) and fresh.layer.weight.is_meta


def test_a_copy_owns_what_compression_writes_down():
    model = wrapped()
    other = copy.deepcopy(model)
    other.channels["layer"] = [0, 2]
    assert model.channels == {}


def test_an_output_that_is_no_vector_is_refused():
    with pytest.raises(UserError, match=r"^Words: the embedding must be a tensor \(B, D\), but"):
        Wrapped(Words(), torch.zeros(2, 2, dtype=torch.long))
    with pytest.raises(UserError, match=r"^Words: embed must return a tensor \(B, D\), but"):
        Wrapped(Words(), torch.zeros(2, 2, dtype=torch.long), lambda net, x_BT: net(x_BT))
    with pytest.raises(UserError, match="needs at least two inputs, got 1"):
        Wrapped(nn.Linear(2, 2), torch.zeros(1, 2))


def test_the_embedding_is_found_as_that_of_an_encoder_is():
    class Pooled(Words):
        def forward(self, x_BT):
            return {"pooler_output": super().forward(x_BT)[0]}

    ids_BT = torch.arange(6).view(3, 2)
    assert Wrapped(Pooled(), ids_BT)(ids_BT).embedding_BD.shape == (3, 4)
    assert Wrapped(Words(), ids_BT, embedding=lambda out: out[0]).embed_dim == 4


def test_there_are_no_feature_maps():
    wrapped().set_taps(())
    with pytest.raises(UserError, match="no feature map 'layer1'"):
        wrapped().set_taps(("layer1",))


def test_it_can_be_moved_and_saved():
    model = wrapped().to("cpu").double()
    assert not any("fresh" in name for name in model.state_dict())
    assert model.net.layer.weight.dtype == torch.float64


def test_a_compiled_module_is_refused():
    compiled = torch.jit.trace(nn.Linear(2, 2), torch.zeros(2, 2))
    with pytest.raises(UserError, match="compiled TorchScript"):
        Wrapped(compiled, torch.zeros(2, 2))


def test_a_loss_on_maps_of_a_module_without_any_is_refused(make_encoder):
    teacher = Wrapped(nn.Sequential(nn.Flatten(), nn.Linear(768, 8)), torch.rand(2, 3, 16, 16))
    settings = {"a": LOSSES.schema("fitnet")(kind="fitnet")}
    with pytest.raises(UserError, match=r"^losses\.a: fitnet: the teacher \(Sequential\) has no"):
        build_losses(make_encoder(), teacher, settings, 10)
    settings = {"a": LOSSES.schema("cosine")(kind="cosine")}
    assert list(build_losses(make_encoder(), teacher, settings, 10)) == ["a"]
