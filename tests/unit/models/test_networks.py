import copy
import pickle

import pytest
import torch
from torch import nn

from ssdistill.artifacts.artifact import load, save_encoder
from ssdistill.chain.plugged import with_plugins
from ssdistill.errors import UserError
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.models.networks import NETWORKS, network
from ssdistill.models.own_net import OwnNet, find_embedding
from ssdistill.models.spec import EncoderSpec


class Cells(nn.Module):
    """A small network that returns a dict."""

    def __init__(self, width: int = 8, in_chans: int = 3):
        super().__init__()
        self.first = nn.Conv2d(in_chans, width, 3, 2, 1)
        self.body = nn.Sequential(nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU())

    def forward(self, x_BCHW):
        map_BCHW = self.body(self.first(x_BCHW))
        return {"pooled": map_BCHW.mean((2, 3)), "map": map_BCHW}


@pytest.fixture
def cells(plugins):
    return network("cells", taps={"early": "first", "late": "body.2"})(Cells)


def built(name="cells", size=16, **settings):
    return build_encoder(EncoderSettings(name=name, **settings), size, (0.5,) * 3, (0.25,) * 3)


def test_a_network_with_a_name_is_an_encoder(cells):
    encoder = built(args={"width": 4})
    assert encoder.embed_dim == 8 and encoder.spec.library == "test_networks"
    assert encoder.tap_names[:2] == ["early", "late"]
    encoder.set_taps(("late", "early"))
    x_BCHW = torch.rand(3, 3, 16, 16)
    seen = encoder(x_BCHW)
    expected = encoder.net.net((x_BCHW - 0.5) / 0.25)
    assert torch.equal(seen.embedding_BD, expected["pooled"])
    assert torch.equal(seen.maps["late"], expected["map"])
    assert list(seen.maps) == ["late", "early"] and seen.maps["early"].shape == (3, 4, 8, 8)
    assert encoder.map_shapes() == {"late": (8, 4, 4), "early": (4, 8, 8)}


def test_it_is_told_the_channels_of_the_images(cells):
    encoder = build_encoder(EncoderSettings(name="cells"), 16, (0.5,) * 5, (0.5,) * 5)
    assert encoder.net.net.first.in_channels == 5
    network("of_three")(lambda: Cells())
    with pytest.raises(UserError, match="'of_three' has no argument in_chans"):
        build_encoder(EncoderSettings(name="of_three"), 16, (0.5,), (0.5,))


def test_what_was_saved_needs_the_package_to_be_opened(cells, tmp_path):
    encoder = built().eval()
    save_encoder(encoder, tmp_path / "saved")
    x_BCHW = torch.rand(2, 3, 16, 16)
    assert torch.equal(load(tmp_path / "saved")(x_BCHW).embedding_BD, encoder(x_BCHW).embedding_BD)
    del NETWORKS["cells"]
    with pytest.raises(UserError) as refused:
        load(tmp_path / "saved")
    assert str(refused.value) == (
        f"the spec in {tmp_path / 'saved' / 'model.json'}: 'cells' is a network of the package "
        "test_networks, which has not been imported: install it, or add --import test_networks"
    )


def test_source_and_taps_are_in_the_hash_of_a_stage(cells):
    config = {"encoder": built().spec.model_dump(mode="json")}
    ((name, identity),) = with_plugins(config)["plugins"].items()
    assert name == "test_networks.cells"
    network("cells", taps={"early": "first"})(Cells)
    assert with_plugins(config)["plugins"][name] != identity


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"args": {"widht": 3}}, "encoder.args.widht: no argument of 'cells' (did you mean"),
        ({"pretrained": True}, "timm has no weights for it"),
        ({"args": {"width": "many"}}, "encoder.args of 'cells'"),
    ],
)
def test_wrong_settings_are_named(cells, settings, said):
    with pytest.raises(UserError) as refused:
        built(**settings)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"taps": {"x": "bodi"}}, "tap 'x': no module or operation 'bodi' (did you mean 'body'"),
        ({"embedding": lambda out: out["map"]}, "embedding=… returns a tensor of shape (2, 16, 4"),
        ({"embedding": lambda out: out}, "returns a dict with the keys pooled, map"),
    ],
)
def test_what_gives_no_embedding_or_map_is_refused(plugins, options, said):
    network("wrong", **options)(Cells)
    with pytest.raises(UserError) as refused:
        built("wrong")
    assert said in str(refused.value)


def test_names_of_timm_and_of_other_packages_are_taken(cells, monkeypatch):
    with pytest.raises(UserError, match="there is one of timm's with this name"):
        network("resnet18")(Cells)
    monkeypatch.setattr(Cells, "__module__", "another.place")
    with pytest.raises(UserError, match="of the package test_networks with this name"):
        network("cells")(Cells)


class Tokens(nn.Module):
    """Patches of 4 pixels, after a class token, as a transformer has them."""

    def __init__(self, others: int = 1):
        super().__init__()
        self.patches, self.others = nn.Conv2d(3, 6, 4, 4), others
        self.last = nn.Identity()

    def forward(self, x_BCHW):
        tokens_BNC = self.patches(x_BCHW).flatten(2).mT
        first_B1C = tokens_BNC.mean(1, keepdim=True).expand(-1, self.others, -1)
        return self.last(torch.cat([first_B1C, tokens_BNC], 1))[:, 0]


@pytest.mark.parametrize(("others", "size"), [(1, (16, 16)), (5, (16, 32)), (0, (32, 16))])
def test_tokens_are_a_map_of_the_patches(others, size):
    module = Tokens(max(1, others))
    spec = EncoderSpec(name="tokens", image_size=size)
    net = OwnNet(module, spec, None, {"last": "last"})
    x_BCHW = torch.rand(2, 3, *size)
    _, (seen,) = net.forward_intermediates(x_BCHW, [0])
    assert torch.equal(seen, module.patches(x_BCHW))


def test_what_models_of_the_field_return_is_understood():
    tensor = torch.rand(2, 5)
    assert find_embedding({"x_norm_clstoken": tensor}) is tensor
    assert find_embedding(type("Output", (), {"pooler_output": tensor})()) is tensor
    assert find_embedding(torch.ones(2, 3, 4, 4)).shape == (2, 3)
    assert find_embedding(tensor) is tensor


class Sums(nn.Module):
    """A residual block whose sum no submodule returns."""

    def __init__(self, branches=False):
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 3, padding=1)
        self.last, self.branches = nn.Sequential(nn.Conv2d(6, 4, 1), nn.ReLU()), branches

    def forward(self, x_BCHW):
        if self.branches and x_BCHW.sum() > 0:
            x_BCHW = x_BCHW + 1
        sum_BCHW = self.one(x_BCHW) + self.other(x_BCHW)
        return self.last(nn.functional.dropout(sum_BCHW, 0.5, self.training))


def sums(taps, branches=False):
    torch.manual_seed(0)
    return OwnNet(Sums(branches), EncoderSpec(name="sums", image_size=8), None, taps)


def test_an_operation_can_be_a_tap():
    net = sums({"sum": "add", "early": "one", "again": "add", "late": "last"}).eval()
    assert [info["num_chs"] for info in net.feature_info] == [6, 6, 6, 4]
    x_BCHW = torch.rand(2, 3, 8, 8)
    output, maps = net.forward_intermediates(x_BCHW, range(4))
    sum_BCHW = net.net.one(x_BCHW) + net.net.other(x_BCHW)
    assert torch.equal(maps[0], sum_BCHW) and torch.equal(maps[2], sum_BCHW)
    assert torch.equal(maps[1], net.net.one(x_BCHW)) and torch.equal(maps[3], output)
    # In training the same operation, and gradients through it; weights are those of the module.
    net.train()
    net.forward_intermediates(x_BCHW, [0])[1][0].sum().backward()
    assert net.net.one.weight.grad.abs().sum() > 0
    with torch.no_grad():
        net.net.one.weight.zero_(), net.net.other.weight.zero_()
    bias_C = net.net.one.bias + net.net.other.bias
    (zeroed,) = net.forward_intermediates(x_BCHW, [0])[1]
    assert torch.allclose(zeroed[0, :, 0, 0], bias_C)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(net)))
    assert torch.equal(copied.forward_intermediates(x_BCHW, [0])[1][0], zeroed)


def test_an_operation_of_training_alone_is_no_tap():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 1)

        def forward(self, x_BCHW):
            x_BCHW = self.layer(x_BCHW).relu()
            return x_BCHW.sin() if self.training else x_BCHW

    spec, module = EncoderSpec(name="noisy", image_size=8), Noisy()
    module.layer.eval()
    with pytest.raises(UserError, match="no module or operation 'sin'"):
        OwnNet(module, spec, None, {"a": "sin"})
    assert module.training and not module.layer.training
    assert OwnNet(module, spec, None, {"a": "relu"}).feature_info[0]["num_chs"] == 4


@pytest.mark.parametrize(
    ("taps", "branches", "said"),
    [
        ({"a": "ad"}, False, "tap 'a': no module or operation 'ad' (did you mean 'add'"),
        ({"a": "last", "b": "last.0"}, False, None),
        ({"a": "last", "b": "last.x"}, False, "tap 'b': last.x is inside the tap last; name oper"),
        ({"a": "ad"}, True, "no module 'ad'; operations cannot be named: torch.fx cannot follow"),
    ],
)
def test_an_operation_that_cannot_be_named_is_refused(taps, branches, said):
    if said is None:
        assert len(sums(taps, branches).feature_info) == 2
        return
    with pytest.raises(UserError) as refused:
        sums(taps, branches)
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("tap", ["norm", "sub"])
def test_a_tap_is_what_it_was_before_later_operations_in_place(tap):
    class Later(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            self.norm, self.act = nn.BatchNorm2d(3), nn.ReLU(inplace)

        def forward(self, x_BCHW):
            y_BCHW = self.norm(x_BCHW)
            if tap == "sub":
                y_BCHW = y_BCHW - 0.5
            return self.act(y_BCHW).mean((2, 3))

    x_BCHW, found = torch.randn(2, 3, 8, 8), []
    for inplace in (True, False):
        net = OwnNet(Later(inplace).eval(), EncoderSpec(name="x", image_size=8), None, {"t": tap})
        found.append(net.forward_intermediates(x_BCHW, [0])[1][0])
    assert torch.equal(*found) and found[0].min() < 0
