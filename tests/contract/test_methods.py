"""What every registered pretraining method must do; a new one is tested without being named."""

import copy

import pytest
import torch
from torch import nn

from ssdistill.artifacts.artifact import load_encoder, save_encoder
from ssdistill.data.batch import Batch
from ssdistill.data.recipes import RECIPES
from ssdistill.errors import UserError
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.settings.registry import METHODS

HEAD = {"hidden_dim": 16, "output_dim": 8}
SMALL = {
    "simclr": {"projector": HEAD},
    "byol": {"projector": HEAD, "predictor": {"hidden_dim": 16}},
    "moco": {"projector": HEAD, "queue": 32, "bn_splits": 2},
    "moco_v3": {"projector": HEAD, "predictor": {"hidden_dim": 16}},
    "simsiam": {"projector": HEAD, "predictor": {"hidden_dim": 16}},
    "nnclr": {"projector": HEAD, "predictor": {"hidden_dim": 16}, "queue": 32},
    "barlow_twins": {"projector": HEAD},
    "vicreg": {"projector": HEAD},
    "swav": {"projector": HEAD, "num_prototypes": 12, "freeze_prototypes": 0.0, "queue": 16},
    "dino": {"projector": HEAD, "num_prototypes": 12, "freeze_last": 0.0},
    "mae": {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2},
    "autoencoder": {"decoder_width": 16},
}
"""Widths and queues that a test can afford; a method that is not named gets its defaults."""
BATCH, STEPS = 8, 10


def vision_transformer(seed=0):
    torch.manual_seed(seed)
    args = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return build_encoder(EncoderSettings(name="vit_tiny_patch16_224", args=args), 16)


@pytest.fixture
def make_method(make_encoder):
    """``make_method(kind)``: the method on the first tiny network that it can train."""

    def make(kind, seed=0):
        settings = METHODS.schema(kind).model_validate(
            {"kind": kind, "steps": STEPS, **SMALL.get(kind, {})}
        )
        for network in (make_encoder, vision_transformer):
            encoder = network(seed)
            for module in encoder.modules():
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.ones_(module.weight)  # timm starts residual branches at zero
            try:
                torch.manual_seed(seed)
                return METHODS.build(settings, encoder).train()
            except UserError as error:
                reason = error
        raise reason

    return make


@pytest.fixture(params=sorted(METHODS.classes))
def kind(request):
    return request.param


@pytest.fixture
def method(kind, make_method):
    return make_method(kind)


def make_batch(step=0):
    images = torch.zeros(BATCH, 16, 16, 3, dtype=torch.uint8)
    return Batch(images, torch.arange(BATCH), 0, step, STEPS)


def make_views(method, step=0, sizes=None):
    generator = torch.Generator().manual_seed(step)
    sizes = sizes or [16] * len(method.recipes)
    return [torch.rand(BATCH, 3, size, size, generator=generator) for size in sizes]


def train(method, steps, start=0):
    trained = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01)
    totals = []
    for step in range(start, start + steps):
        losses = method(make_views(method, step), make_batch(step))
        weights = method.weights_at(step, STEPS)
        total = sum(weights[name] * loss for name, loss in losses.items())
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(step, STEPS)
        totals.append(total.item())
    return totals


def test_it_says_where_it_comes_from_and_what_it_sees(kind):
    cls = METHODS[kind]
    assert "arXiv:" in cls.paper or "doi:" in cls.paper
    assert set(cls.recipes) <= set(RECIPES)
    assert cls.__doc__ and cls.__doc__.splitlines()[0].endswith(".")


def test_losses_are_finite_float32_scalars_with_a_weight_each(method):
    losses = method(make_views(method), make_batch())
    assert losses.keys() == method.weights_at(0, STEPS).keys()
    for loss in losses.values():
        assert loss.shape == () and loss.dtype == torch.float32 and torch.isfinite(loss)


def test_every_trained_weight_gets_a_gradient_and_no_other(method):
    losses = method(make_views(method), make_batch())
    weights = method.weights_at(0, STEPS)
    sum(weights[name] * loss for name, loss in losses.items()).backward()
    encoder = {id(p) for p in method.encoder.parameters()}
    for name, p in method.named_parameters():
        if p.requires_grad and p.ndim > 1:
            assert p.grad is not None and p.grad.abs().sum() > 0, name
        elif not p.requires_grad:
            assert p.grad is None, name
    trained = {id(p) for p in method.parameters() if p.requires_grad}
    # A method may keep a patch embedding as it is, no more.
    assert len(encoder - trained) <= 2


def test_the_label_free_metrics_see_views_of_the_same_images_without_gradient(method):
    method(make_views(method), make_batch())
    assert 1 <= len(method.last_embeddings) <= len(method.recipes)
    for z_BD in method.last_embeddings:
        assert z_BD.shape == (BATCH, method.encoder.embed_dim)
        assert not z_BD.requires_grad


def test_half_precision_networks_give_a_loss_close_to_that_of_full_ones(method):
    other = copy.deepcopy(method)
    full = method(make_views(method), make_batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = other(make_views(method), make_batch())
    for name, loss in full.items():
        assert half[name].dtype == torch.float32
        assert half[name].item() == pytest.approx(loss.item(), rel=0.1, abs=0.05), name


def test_a_resumed_training_goes_on_to_the_same_numbers(kind, make_method):
    whole = train(make_method(kind), 6)
    first = make_method(kind)
    train(first, 3)
    second = make_method(kind, seed=1)
    second.load_state_dict(first.state_dict())
    assert train(second, 3, start=3) == whole[3:]


def test_smaller_views_join_where_the_method_says_so(method):
    if not method.multicrop:
        pytest.skip("takes views of one size")
    sizes = [16] * len(method.recipes) + [12, 12]
    losses = method(make_views(method, sizes=sizes), make_batch())
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_the_encoder_is_saved_with_its_projector(method, tmp_path):
    train(method, 2)
    encoder, projector = method.eval().exported
    encoder.projector = projector
    save_encoder(encoder, tmp_path)
    found = load_encoder(tmp_path)
    x_BCHW = make_views(method)[0]
    embedding_BD = encoder(x_BCHW).embedding_BD
    assert torch.equal(found(x_BCHW).embedding_BD, embedding_BD)
    assert (found.projector is None) == (projector is None)
    if projector is not None:
        assert torch.equal(found.projector(embedding_BD), projector(embedding_BD))
