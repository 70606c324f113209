import pytest
import torch
from torch import nn

from ssdistill.errors import UserError
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.models.final_patches import FINAL_PATCHES
from ssdistill.models.masked_tokens import mask_width, masked_pass

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
TRANSFORMERS = {
    "plain": ("vit_tiny_patch16_224", VIT),
    "any size": ("vit_tiny_patch16_224", {**VIT, "dynamic_img_size": True}),
    "registers": ("vit_tiny_patch16_224", {**VIT, "reg_tokens": 4}),
    "average of patches": ("vit_tiny_patch16_224", {**VIT, "global_pool": "avg"}),
    "DINOv3": ("vit_small_patch16_dinov3", VIT),
}
OTHERS = {
    "resnet10t": {},
    "swin_tiny_patch4_window7_224": {"img_size": 32, "window_size": 2},
    "convnext_atto": {},
}


def encoder_of(name, args):
    torch.manual_seed(0)
    encoder = build_encoder(EncoderSettings(name=name, args=args), 32).eval()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    return encoder


def images():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_what_is_hidden_makes_no_difference(name):
    encoder = encoder_of(*TRANSFORMERS[name])
    assert mask_width(encoder) == 32
    encoder.set_taps((FINAL_PATCHES,))
    token_D = nn.Parameter(torch.randn(32))
    mask_BN = torch.zeros(2, 16, dtype=torch.bool)
    mask_BN[0, 5] = True  # the second row of patches, the second of them
    x_BCHW = images()
    masked = masked_pass(x_BCHW, mask_BN, encoder, token_D)
    plain = encoder(x_BCHW)
    assert torch.allclose(masked.embedding_BD[1], plain.embedding_BD[1], atol=1e-5)
    assert not torch.allclose(masked.embedding_BD[0], plain.embedding_BD[0], atol=1e-3)
    other = x_BCHW.clone()
    other[0, :, 8:16, 8:16] = 0.5
    again = masked_pass(other, mask_BN, encoder, token_D)
    assert torch.equal(again.embedding_BD, masked.embedding_BD)
    assert torch.equal(again.maps[FINAL_PATCHES], masked.maps[FINAL_PATCHES])
    masked.embedding_BD.sum().backward()
    assert token_D.grad.abs().min() > 0
    # Nothing remains in the encoder.
    assert torch.equal(encoder(x_BCHW).embedding_BD, plain.embedding_BD)
    assert "token_D" not in dict(encoder.named_parameters())


def test_a_mask_that_hides_nothing_changes_nothing():
    encoder = encoder_of(*TRANSFORMERS["plain"])
    nothing_BN = torch.zeros(2, 16, dtype=torch.bool)
    masked = masked_pass(images(), nothing_BN, encoder, torch.ones(32))
    assert torch.equal(masked.embedding_BD, encoder(images()).embedding_BD)


@pytest.mark.parametrize("name", OTHERS)
def test_other_networks_cannot_be_masked(name):
    encoder = encoder_of(name, OTHERS[name])
    taps = encoder.taps
    assert mask_width(encoder) is None and encoder.taps == taps


def test_views_of_another_size_are_refused():
    encoder = encoder_of(*TRANSFORMERS["any size"])
    mask_BN = torch.zeros(2, 16, dtype=torch.bool)
    with pytest.raises(UserError, match=r"views of 16 x 16 pixels have other patches .* set pairs"):
        masked_pass(images()[..., :16, :16], mask_BN, encoder, torch.ones(32))
