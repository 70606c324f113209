"""Methods that restore pixels, on images of other channels that are no squares."""

import torch
from lightly.models.utils import patchify

from ssdistill.data.batch import Batch
from ssdistill.models.backbones import build_encoder
from ssdistill.models.spec import EncoderSettings
from ssdistill.pretrain.autoencoder import Autoencoder
from ssdistill.pretrain.mae import MAE, _decoder, patches_of

MEAN, STD = (0.1, 0.2, 0.3, 0.4, 0.5), (0.2,) * 5
BATCH = Batch(torch.zeros(4, 32, 16, 5, dtype=torch.uint8), torch.arange(4), 0, 0, 1)


def vit(size=(32, 16)):
    args = {"img_size": size, "embed_dim": 24, "depth": 1, "num_heads": 2, "patch_size": 4}
    return build_encoder(EncoderSettings(name="vit_tiny_patch16_224", args=args), size, MEAN, STD)


def test_mae_restores_patches_of_five_channels():
    method = MAE(vit(), decoder_dim=16, decoder_depth=1, decoder_heads=2)
    x_BCHW = torch.rand(4, 5, 32, 16)
    assert method.predict.out_features == 5 * 16
    loss = method([x_BCHW], BATCH)["mae"]
    loss.backward()
    assert torch.isfinite(loss)


def test_patches_are_lightlys_of_squares_and_run_row_by_row():
    x_BCHW = torch.rand(2, 3, 8, 8)
    assert torch.equal(patches_of(x_BCHW, 4), patchify(x_BCHW, 4))
    wide_BCHW = torch.arange(2 * 4).view(1, 1, 2, 4).float()
    assert patches_of(wide_BCHW, 2).tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7]]]


def test_positions_of_a_grid_are_those_of_the_square_around_it():
    square = _decoder((4, 4), 16, 1, 2, 1).pos_embed[0, 1:].view(4, 4, 16)
    tall = _decoder((4, 2), 16, 1, 2, 1).pos_embed
    assert torch.equal(tall[0, 1:].view(4, 2, 16), square[:, :2])
    assert not tall[0, 0].any() and not tall.requires_grad


def test_an_autoencoder_restores_images_of_its_size():
    settings = EncoderSettings(name="resnet18", args={"channels": [4, 4, 8, 8]})
    method = Autoencoder(build_encoder(settings, (32, 16), MEAN, STD), decoder_width=16)
    assert method.decoder(torch.rand(4, 8)).shape == (4, 5, 32, 16)
    assert torch.isfinite(method([torch.rand(4, 5, 32, 16)], BATCH)["autoencoder"])
