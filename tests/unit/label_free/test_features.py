import copy
import hashlib
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ssdistill.data.views import eval_view
from ssdistill.errors import UserError
from ssdistill.label_free import features
from ssdistill.label_free.features import evaluating, extract
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.models.representation import Representation


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (70, 16, 16, 3), dtype=np.uint8)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    args = {
        "layers": (1, 1, 1, 0),
        "channels": (8, 8, 16, 16),
        "stem_type": "deep",
        "stem_width": 8,
    }
    return build_encoder(EncoderSettings(name="resnet10t", args=args, stem_stride=2), 16)


def digest(module: nn.Module) -> str:
    sha = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        sha.update(name.encode() + tensor.numpy().tobytes())
    return sha.hexdigest()


def test_embeddings_are_the_encoders_in_eval_mode(encoder, images):
    z_ND = extract(encoder, images, 16, batch_size=32)
    frozen = copy.deepcopy(encoder).eval()
    with torch.no_grad():
        expected_ND = frozen(eval_view(torch.from_numpy(images), 16)).embedding_BD
    assert z_ND.dtype == torch.float32 and z_ND.shape == (70, encoder.embed_dim)
    assert torch.allclose(z_ND, expected_ND, atol=1e-5)


def test_neither_weights_nor_buffers_nor_modes_change(encoder, images):
    encoder.train()
    encoder.net.layer1.eval()
    modes = [module.training for module in encoder.modules()]
    before = digest(encoder)
    extract(encoder, images, 16, precision="bf16")
    assert digest(encoder) == before
    assert [module.training for module in encoder.modules()] == modes
    encoder(eval_view(torch.from_numpy(images), 16))
    assert digest(encoder) != before, "the digest would not have seen changed buffers"


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(("device", "moves"), [("meta", ["meta", "cpu"]), ("cpu", []), (None, [])])
def test_an_encoder_is_moved_to_the_device_and_back(device, moves, fails):
    class Moved(nn.Linear):
        def to(self, device):
            moved.append(str(device))
            return self

    moved, encoder = [], Moved(2, 2)
    with nullcontext() if not fails else pytest.raises(KeyError), evaluating(encoder, device) as on:
        assert str(on) == (device or "cpu") and not encoder.training
        if fails:
            raise KeyError
    assert moved == moves and encoder.training


def test_modes_come_back_when_the_encoder_fails(encoder):
    class Broken(nn.Module):
        def forward(self, x_BCHW):
            raise RuntimeError("broken")

    broken = Broken().train()
    with pytest.raises(RuntimeError, match="broken"):
        extract(broken, np.zeros((2, 8, 8, 3), np.uint8), 8)
    assert broken.training


def test_batch_size_does_not_matter(encoder, images):
    whole, parts = extract(encoder, images, 16), extract(encoder, images, 16, batch_size=9)
    assert torch.allclose(whole, parts, atol=1e-5)


def test_bf16_is_close_and_comes_back_as_float32(encoder, images):
    exact, rounded = extract(encoder, images, 16), extract(encoder, images, 16, precision="bf16")
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    assert torch.cosine_similarity(exact, rounded).min() > 0.99


def test_memory_map_is_read_without_writing(encoder, images, tmp_path):
    path = tmp_path / "images.dat"
    images.tofile(path)
    mapped = np.memmap(path, np.uint8, "r", shape=images.shape)
    assert torch.equal(extract(encoder, mapped, 16), extract(encoder, images, 16))
    assert torch.equal(extract(encoder, torch.from_numpy(images), 16), extract(encoder, images, 16))


def test_given_room_is_filled_and_returned(encoder, images):
    asked = []

    def room(rows, width):
        asked.append(torch.full((rows, width), torch.nan))
        return asked[-1]

    z_ND = extract(encoder, images, 16, batch_size=32, out=room)
    assert len(asked) == 1 and z_ND is asked[0]
    assert torch.equal(z_ND, extract(encoder, images, 16, batch_size=32))


def test_anything_that_returns_a_representation_is_an_encoder(images):
    def mean_color(x_BCHW):
        assert x_BCHW.shape[1:] == (3, 8, 8) and x_BCHW.min() >= 0 and x_BCHW.max() <= 1
        return Representation(x_BCHW.mean((2, 3)))

    z_ND = extract(mean_color, images, 8)
    assert torch.allclose(z_ND, torch.from_numpy(images).float().mean((1, 2)) / 255, atol=0.02)


def test_embeddings_can_be_differentiated_through(encoder, images):
    z_ND = extract(encoder, images, 16)
    weight_D = torch.zeros(z_ND.shape[1], requires_grad=True)
    (z_ND @ weight_D).sum().backward()
    assert weight_D.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (np.zeros((4, 8, 8, 3), np.float64), "of uint8, or of float32"),
        (np.full((4, 8, 8, 3), 2, np.float32), r"in \[0, 1\], got values from 2 to 2"),
        (np.full((4, 8, 8, 3), np.nan, np.float32), "values from nan to nan"),
        (np.zeros((4, 8, 8, 5), np.uint8), r"takes 3 channels, got .*\(4, 8, 8, 5\)"),
        (np.zeros((4, 3, 8, 8), np.uint8), "uint8"),
        (np.zeros((0, 8, 8, 3), np.uint8), "uint8"),
    ],
)
def test_images_of_another_kind_are_refused(encoder, wrong, says):
    with pytest.raises(UserError, match=says):
        extract(encoder, wrong, 8)


def test_unknown_precision_is_refused(encoder, images):
    with pytest.raises(UserError, match="did you mean 'fp32'"):
        extract(encoder, images, 16, precision="fp23")


@pytest.mark.parametrize("progress", [True, False])
@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_drawn_on_a_terminal_where_one_is_wanted(progress, terminal, monkeypatch):
    drawn = []

    def track(starts, *_, disable, **__):
        drawn.append(not disable)
        return starts

    monkeypatch.setattr(features, "track", track)
    monkeypatch.setattr(features, "get_console", lambda: SimpleNamespace(is_terminal=terminal))
    assert list(features._tracked(iter([0, 2, 4]), 3, progress)) == [0, 2, 4]
    assert drawn == [progress and terminal]
