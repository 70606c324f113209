import copy

import pytest
import torch
from torch import nn

from ssdistill.data.batch import Batch
from ssdistill.data.masking import shuffled
from ssdistill.errors import UserError
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.pretrain.mae import MAE

TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
DECODER = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
STATISTICS = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}


def make_vit(seed=0, name="vit_tiny_patch16_224", **args):
    torch.manual_seed(seed)
    return build_encoder(EncoderSettings(name=name, args=TINY | args), 16, **STATISTICS)


def make_mae(seed=0, encoder=None, **settings):
    encoder = encoder or make_vit(seed)
    torch.manual_seed(seed)
    return MAE(encoder, **DECODER | settings).train()


def make_batch(step=0, index=range(3)):
    index_B = torch.tensor(list(index))
    images = torch.zeros(len(index_B), 16, 16, 3, dtype=torch.uint8)
    return Batch(images, index_B, 0, step, 10)


def make_view(count=3, seed=1):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def naive_loss(mae, view, batch, normalize=True):
    """Image by image and patch by patch, with slices and loops only."""
    net = mae.encoder.net
    mean, std = (torch.tensor(STATISTICS[name]).view(3, 1, 1) for name in ("mean", "std"))
    order = shuffled(batch, 16).tolist()
    errors = []
    for image, numbers in zip(view, order, strict=True):
        pixels = (image - mean) / std
        visible, masked = numbers[:4], numbers[4:]

        def patch(number, pixels=pixels):
            row, column = divmod(number, 4)
            return pixels[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]

        tokens = [net.cls_token[0, 0] + net.pos_embed[0, 0]]
        for number in visible:
            token = torch.einsum("dchw,chw->d", net.patch_embed.proj.weight, patch(number))
            tokens.append(token + net.patch_embed.proj.bias + net.pos_embed[0, 1 + number])
        tokens = net.norm(net.blocks(torch.stack(tokens)[None]))[0]
        narrow = mae.narrow(tokens)
        places = [narrow[0]] + [mae.decoder.mask_token[0, 0]] * 16
        for k, number in enumerate(visible):
            places[1 + number] = narrow[1 + k]
        decoded = mae.decoder.blocks((torch.stack(places) + mae.decoder.pos_embed[0])[None])
        predicted = mae.predict(mae.decoder.norm(decoded))[0]
        for number in masked:
            target = patch(number).permute(1, 2, 0).flatten()  # row, column, channel
            if normalize:
                target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
            errors.append(((predicted[1 + number] - target) ** 2).mean())
    assert len(errors) == 12 * len(view)
    return torch.stack(errors).mean()


@pytest.mark.parametrize("normalize", [True, False])
def test_maes_loss_is_that_of_a_naive_implementation(normalize):
    mae = make_mae(normalize_targets=normalize)
    nn.init.normal_(mae.encoder.net.cls_token)
    view, batch = make_view(), make_batch(step=3)
    expected = naive_loss(mae, view, batch, normalize)
    assert mae([view], batch)["mae"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert mae.weights_at(0, 10) == {"mae": 1.0} and mae.projector is None


def test_maes_encoder_sees_nothing_of_masked_patches():
    mae = make_mae()
    view, batch = make_view(), make_batch()
    mae([view], batch)
    before = mae.last_embeddings[0]
    masked_BM = shuffled(batch, 16)[:, 4:]
    hide_BN = torch.zeros(3, 16).scatter(1, masked_BM, 1.0)
    hide = nn.functional.interpolate(hide_BN.view(3, 1, 4, 4), (16, 16)).bool()
    mae([torch.where(hide, 0.77, view)], batch)
    assert torch.allclose(mae.last_embeddings[0], before, atol=1e-6)
    mae([torch.where(hide, view, 0.77)], batch)
    assert not torch.allclose(mae.last_embeddings[0], before, atol=1e-2)


def test_the_share_of_masked_patches_is_as_told_and_never_all_or_nothing():
    lengths = []
    for ratio in (0.01, 0.5, 0.75, 0.99):
        mae = make_mae(mask_ratio=ratio)
        mae.encoder.net.blocks[0].register_forward_pre_hook(
            lambda _, inputs: lengths.append(inputs[0].shape[1])
        )
        mae([make_view()], make_batch())
    assert lengths == [1 + 15, 1 + 8, 1 + 4, 1 + 1]


def test_patches_are_drawn_by_step_and_image_alone():
    order = shuffled(make_batch(5, index=[7, 8, 9]), 16)
    assert torch.equal(order.sort(1).values, torch.arange(16).expand(3, 16))
    torch.manual_seed(99)
    assert torch.equal(shuffled(make_batch(5, index=[9, 7]), 16), order[[2, 0]])
    assert not torch.equal(order[0], order[1])
    assert not torch.equal(shuffled(make_batch(6, index=[7, 8, 9]), 16), order)


def test_every_patch_is_masked_equally_often():
    order = torch.cat([shuffled(make_batch(step, range(100)), 16) for step in range(8)])
    share = torch.bincount(order[:, 4:].flatten(), minlength=16) / len(order)
    assert share.sub(0.75).abs().max() < 0.06


def test_maes_gradient_reaches_everything_that_is_trained():
    mae = make_mae()
    mae([make_view()], make_batch())["mae"].backward()
    trained = {name: p for name, p in mae.named_parameters() if p.requires_grad}
    assert set(mae.state_dict()) - set(trained) == {"decoder.pos_embed"}
    assert {"encoder.net.pos_embed", "encoder.net.cls_token", "decoder.mask_token"} <= set(trained)
    assert all(p.grad is not None and p.grad.any() for p in trained.values())


def test_the_label_free_metrics_see_the_pooled_visible_tokens_without_gradient():
    mae = make_mae()
    view, batch = make_view(), make_batch()
    mae([view], batch)
    (embedding,) = mae.last_embeddings
    x_BCHW = (view - mae.encoder.mean) / mae.encoder.std
    tokens = mae.encode(x_BCHW, shuffled(batch, 16)[:, :4])
    assert torch.equal(embedding, tokens[:, 0]) and not embedding.requires_grad


def test_the_encoder_encodes_whole_images_as_before():
    mae = make_mae()
    view = make_view()
    before = mae.encoder(view).embedding_BD
    mae([view], make_batch())
    assert torch.equal(mae.encoder(view).embedding_BD, before)


@pytest.mark.parametrize(
    "args",
    [
        {"class_token": False, "global_pool": "avg"},
        {"reg_tokens": 2},
        {"no_embed_class": True, "reg_tokens": 1, "pre_norm": True},
        {"dynamic_img_size": True},
        {"patch_drop_rate": 0.5},
    ],
    ids=str,
)
def test_mae_trains_other_plain_vision_transformers_whole(args):
    mae = make_mae(encoder=make_vit(**args))
    mae([make_view()], make_batch())["mae"].backward()
    assert mae.last_embeddings[0].shape == (3, 32)
    assert all(p.grad is not None and p.grad.any() for p in mae.parameters() if p.requires_grad)


def test_maes_loss_falls():
    mae = make_mae()
    optimizer = torch.optim.AdamW([p for p in mae.parameters() if p.requires_grad], lr=3e-3)
    view, losses = make_view(), []
    for _ in range(15):
        loss = mae([view], make_batch())["mae"]
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.9 * losses[0]


def test_maes_loss_under_autocast_is_float32_and_close():
    mae = make_mae()
    exact = mae([make_view()], make_batch())["mae"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = mae([make_view()], make_batch())["mae"]
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02)


def test_mae_resumes_bit_by_bit():
    mae, other = make_mae(), make_mae(seed=1)
    other.load_state_dict(copy.deepcopy(mae.state_dict()))
    views, batch = [make_view(seed=2)], make_batch(4)
    assert torch.equal(mae(views, batch)["mae"], other(views, batch)["mae"])


def test_mae_refuses_what_is_no_plain_vision_transformer(make_encoder):
    with pytest.raises(UserError, match=r"^mae requires .*'resnet10t' is not one$"):
        MAE(make_encoder())
    with pytest.raises(UserError, match="uses attention pooling"):
        MAE(make_vit(global_pool="map", class_token=False))
    with pytest.raises(UserError, match="no grid of several square patches"):
        MAE(make_vit(patch_size=16))


@pytest.mark.parametrize(("dim", "heads"), [(18, 2), (16, 3)])
def test_a_decoder_that_cannot_be_is_refused(dim, heads):
    with pytest.raises(UserError, match=rf"^decoder_dim={dim} .*decoder_heads={heads}$"):
        MAE(make_vit(), decoder_dim=dim, decoder_heads=heads)
