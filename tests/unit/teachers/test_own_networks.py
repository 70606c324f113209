"""Checkpoints of networks that a package or a program brings."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ssdistill.chain.plugged import with_plugins
from ssdistill.errors import UserError
from ssdistill.models.networks import network
from ssdistill.settings.registry import TEACHERS
from ssdistill.teachers import ImageSpec
from ssdistill.teachers.formats.own_names import of_own_network

OF_DATA = ImageSpec(image_size=16, mean=(0.5,) * 3, std=(0.25,) * 3)


class Blocks(nn.Module):
    """As authors publish it, outside of timm."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, width, 3, 2), nn.BatchNorm2d(width)

    def forward(self, x_BCHW):
        return {"last_hidden_state": self.norm(self.first(x_BCHW)).flatten(2).mT}


@pytest.fixture
def published(plugins, tmp_path):
    """The network, and a file of its weights under the names of its authors."""
    network("blocks", embedding=lambda out: out["last_hidden_state"].mean(1))(Blocks)
    module = Blocks().eval()
    save_file({f"model.{k}": t for k, t in module.state_dict().items()}, tmp_path / "x.safetensors")
    return module, str(tmp_path / "x.safetensors")


def teacher(path, **settings):
    tree = {"kind": "checkpoint", "path": path, "encoder": {"name": "blocks"}, **settings}
    return TEACHERS.build(TEACHERS.schema("checkpoint").model_validate(tree))


def test_a_network_of_others_loads_its_checkpoint(published):
    module, path = published
    encoder, notices = teacher(path).load(OF_DATA)
    x_BCHW = torch.rand(2, 3, 16, 16)
    expected_BD = module((x_BCHW - 0.5) / 0.25)["last_hidden_state"].mean(1)
    assert torch.allclose(encoder(x_BCHW).embedding_BD, expected_BD, atol=1e-6)
    assert notices[0] == "x.safetensors: loaded 7 of its 7 tensors into 'blocks'"
    assert "the training images' own statistics; set teacher.mean" in notices[1]
    encoder, notices = teacher(path, mean=[0.0] * 3, std=[1.0] * 3, input_size=32).load(OF_DATA)
    assert encoder.spec.mean == (0.0,) * 3 and encoder.spec.input_size == 32
    assert notices[1].endswith("by teacher.mean and teacher.std")


def test_it_is_part_of_the_hash_of_the_stage_that_loads_it(published):
    _, path = published
    config = {"teacher": {"kind": "checkpoint", "path": path, "encoder": {"name": "blocks"}}}
    assert list(with_plugins(config)["plugins"]) == ["test_own_networks.blocks"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"encoder": {"name": "blocks", "args": {"width": 4}}},
            "has a 'net.first.bias' of shape (8,)",
        ),
        ({"format": "dino"}, "teacher.format is for networks of timm, and 'blocks' is none"),
        ({"branch": "student"}, "teacher.branch is for networks of timm"),
    ],
)
def test_what_does_not_fit_is_named(published, settings, said):
    with pytest.raises(UserError) as refused:
        teacher(published[1], **settings).load(OF_DATA)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_tensors_that_are_missing_are_named(published, tmp_path):
    module, _ = published
    state = {k: t for k, t in module.state_dict().items() if "running" not in k}
    save_file(state, tmp_path / "y.safetensors")
    with pytest.raises(UserError, match=r"lacks 2 of the 7 tensors of 'blocks' \(net\.norm\.run"):
        teacher(str(tmp_path / "y.safetensors")).load(OF_DATA)
    allowed = teacher(str(tmp_path / "y.safetensors"), allow_missing=True)
    assert "missing: net.norm.running_mean" in allowed.load(OF_DATA)[1][2]


def holder(attribute: str) -> nn.Module:
    """A network with layers in a submodule of that name, and one beside it."""
    module = nn.Module()
    module.add_module(attribute, nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    module.add_module("fc", nn.Linear(8, 8))
    return module


def wrapped(state: dict, prefix: str) -> dict:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize("attribute", ["model", "module", "net", "encoder", "args", "optim"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model.", "net.", "student."])
def test_names_of_a_network_are_not_taken_for_those_of_a_wrapper(attribute, prefix):
    state = holder(attribute).state_dict()
    own = wrapped(state, "net.")
    found = of_own_network(wrapped(state, prefix), own)
    assert found.keys() == own.keys()
    assert all(found[name] is state[name.removeprefix("net.")] for name in found)


def test_a_prefix_that_a_file_lacks_is_added():
    whole = holder("body").state_dict()
    inner = {n.removeprefix("body."): t for n, t in whole.items() if n.startswith("body.")}
    found = of_own_network(inner, wrapped(whole, "net."))
    assert found.keys() == {f"net.body.{name}" for name in inner}


def test_of_several_networks_in_a_file_the_first_prefix_that_fits_is_taken():
    one, other = holder("body").state_dict(), holder("body").state_dict()
    both = wrapped(one, "state_dict.") | wrapped(other, "state_dict_ema.")
    found = of_own_network(both, wrapped(one, "net."))
    assert all(found[f"net.{name}"] is one[name] for name in one)
