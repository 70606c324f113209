import copy

import pytest
import torch
from torch import nn

from ssdistill.data import batch as batch_module
from ssdistill.data.batch import Batch
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.pretrain import autoencoder
from ssdistill.pretrain.autoencoder import Autoencoder, ImageDecoder


def make_batch(step=0, count=4):
    images = torch.zeros(count, 16, 16, 3, dtype=torch.uint8)
    return Batch(images, torch.arange(count), 0, step, 10)


def make_view(count=4, seed=1):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def make_autoencoder(make_encoder):
    def make(seed=0, **settings):
        return Autoencoder(make_encoder(seed), **{"decoder_width": 32} | settings).train()

    return make


def test_the_autoencoder_decodes_the_corrupted_images_embedding_to_the_clean_pixels(
    make_autoencoder,
):
    auto = make_autoencoder().eval()
    view, batch = make_view(), make_batch()
    loss = auto([view], batch)["autoencoder"]
    embedding = auto.encoder(auto.corrupt(view, batch)).embedding_BD
    image = auto.decoder(embedding)
    pixels = [(view[:, c] - auto.encoder.spec.mean[c]) / auto.encoder.spec.std[c] for c in range(3)]
    assert image.shape == view.shape
    by_hand = sum(((image[:, c] - pixels[c]) ** 2).sum() for c in range(3)) / view.numel()
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert torch.equal(auto.last_embeddings[0], embedding)
    assert not auto.last_embeddings[0].requires_grad and auto.projector is None


def test_noise_has_the_standard_deviation_it_is_told(make_autoencoder):
    auto = make_autoencoder(noise=0.3, mask=0.0)
    view = make_view(count=40)
    added = auto.corrupt(view, make_batch(count=40)) - view
    assert added.std().item() == pytest.approx(0.3, rel=0.03)
    assert added.mean().item() == pytest.approx(0.0, abs=0.01)


def test_masked_cells_are_gray_and_as_many_in_each_image(make_autoencoder):
    auto = make_autoencoder(noise=0.0, mask=0.25, mask_grid=4)
    view = make_view()
    seen = auto.corrupt(view, make_batch())
    changed = (seen != view).any(1)
    assert changed.flatten(1).sum(1).tolist() == [4 * 16] * 4
    assert torch.allclose(
        seen.movedim(1, -1)[changed], torch.tensor(auto.encoder.spec.mean), atol=1e-6
    )
    cells = changed.view(4, 4, 4, 4, 4).float().mean((2, 4))
    assert set(cells.flatten().tolist()) == {0.0, 1.0}
    assert not torch.equal(cells[0], cells[1])


def test_nothing_is_corrupted_if_so_told(make_autoencoder):
    view = make_view()
    assert make_autoencoder(noise=0.0, mask=0.0).corrupt(view, make_batch()) is view


def test_corruption_is_drawn_by_the_step_alone(make_autoencoder):
    auto, view = make_autoencoder(), make_view()
    first = auto.corrupt(view, make_batch(3))
    torch.manual_seed(99)
    assert torch.equal(auto.corrupt(view, make_batch(3)), first)
    for settings in ({"mask": 0.0}, {"noise": 0.0}):
        auto = make_autoencoder(**settings)
        one, other = (auto.corrupt(view, make_batch(step)) for step in (3, 4))
        assert not torch.equal(one, other)


def test_the_gradient_reaches_everything_through_the_embedding(make_autoencoder):
    auto = make_autoencoder()
    for module in auto.encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm starts residual branches at zero
    auto([make_view()], make_batch())["autoencoder"].backward()
    assert all(p.grad is not None and p.grad.any() for p in auto.parameters())


def test_any_encoder_will_do():
    args = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
    encoder = build_encoder(EncoderSettings(name="vit_tiny_patch16_224", args=args), 16)
    auto = Autoencoder(encoder, decoder_width=8).train()
    auto([make_view()], make_batch())["autoencoder"].backward()
    assert encoder.net.pos_embed.grad.any()


def test_the_autoencoders_loss_falls(make_autoencoder):
    auto = make_autoencoder()
    optimizer = torch.optim.AdamW(auto.parameters(), lr=3e-3)
    losses = []
    for step in range(15):
        loss = auto([make_view()], make_batch(step))["autoencoder"]
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.9 * losses[0]


def test_the_autoencoders_loss_under_autocast_is_float32_and_close(make_autoencoder):
    auto = make_autoencoder()
    exact = auto([make_view()], make_batch())["autoencoder"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = auto([make_view()], make_batch())["autoencoder"]
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02)


def test_the_autoencoder_resumes_bit_by_bit(make_autoencoder):
    auto, other = make_autoencoder(), make_autoencoder(seed=1)
    auto([make_view()], make_batch(0))
    other.load_state_dict(copy.deepcopy(auto.state_dict()))
    views, batch = [make_view(seed=2)], make_batch(1)
    assert torch.equal(auto(views, batch)["autoencoder"], other(views, batch)["autoencoder"])


@pytest.mark.parametrize(("size", "maps"), [(3, [4]), (28, [4, 8, 16, 32]), (32, [4, 8, 16, 32])])
def test_the_decoder_reaches_any_size_by_doubling(size, maps):
    decoder = ImageDecoder(5, 64, size)
    sides, channels = [], []
    for module in decoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda m, _, out: sides.append(out.shape[-1]))
            channels.append(module.num_features)
    assert decoder(torch.randn(2, 5)).shape == (2, 3, size, size)
    assert sides == maps
    assert channels == [64, 32, 16, 16][: len(maps)]


def test_processes_draw_their_parts_of_the_noise_that_one_would_draw(monkeypatch):
    whole = autoencoder.normal(torch.zeros(6, 3, 4, 4), make_batch(5, count=6))
    monkeypatch.setattr(batch_module, "world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(batch_module, "rank", lambda rank=rank: rank)
        part = autoencoder.normal(torch.zeros(2, 3, 4, 4), make_batch(5, count=2))
        assert torch.equal(part, whole[2 * rank : 2 * rank + 2])
