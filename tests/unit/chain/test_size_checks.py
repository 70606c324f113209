"""Sizes that a network cannot take, and pixels that it ignores."""

import pytest
from torch import nn

from ssdistill.chain.size_checks import check_sizes, unseen
from ssdistill.errors import UserError
from ssdistill.models.backbones import EncoderSettings, build_encoder


@pytest.mark.parametrize(
    ("conv", "side", "rows"),
    [
        (nn.Conv2d(3, 4, 16, 16), 224, 0),
        (nn.Conv2d(3, 4, 16, 16), 230, 6),
        (nn.Conv2d(3, 4, 4, 4), 30, 2),
        (nn.Conv2d(3, 4, 7, 2, 3), 63, 0),
        (nn.Conv2d(3, 4, 7, 2, 3), 64, 0),
        (nn.Conv2d(3, 4, 3, 2), 8, 1),
        (nn.Conv2d(3, 4, 1, 2), 8, 0),
        (nn.Conv2d(3, 4, 3, padding="same"), 8, 0),
    ],
)
def test_rows_that_no_output_reads(conv, side, rows):
    assert unseen(conv, side) == rows


def test_unread_rows_change_nothing_and_read_ones_do():
    """The rule against the convolution itself."""
    import torch

    for kernel, stride, padding in ((4, 4, 0), (3, 2, 1), (5, 3, 1), (3, 2, 0)):
        for side in range(6, 14):
            conv = nn.Conv2d(1, 1, kernel, stride, padding)
            x = torch.zeros(1, 1, side, side)
            plain = conv(x)
            seen = []
            for row in range(side):
                y = x.clone()
                y[:, :, row] = 1
                seen.append(not torch.equal(conv(y), plain))
            last = max(row for row, is_seen in enumerate(seen) if is_seen)
            assert unseen(conv, side) == side - 1 - last


def vit(**args):
    args = {"img_size": 20, "patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2} | args
    return build_encoder(EncoderSettings(name="vit_tiny_patch16_224", args=args), 20)


def test_a_patch_size_that_does_not_divide_the_image_says_what_is_cut():
    (notice,) = check_sizes(vit(), "pretrain", (), "teacher")
    assert notice.startswith(
        "teacher.encoder: vit_tiny_patch16_224 ignores the last 4 of 20 pixels"
    )
    assert "an image of 16 pixels" in notice
    assert check_sizes(vit(patch_size=5), "pretrain", (), "teacher") == []


def test_a_patchifying_stem_says_what_is_cut():
    args = {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8]}
    encoder = build_encoder(EncoderSettings(name="convnext_atto", args=args), 66)
    (notice,) = check_sizes(encoder, "distill", (), "student")
    assert notice.startswith("student.encoder: convnext_atto ignores the last")


def test_a_residual_network_sees_every_pixel(make_encoder):
    assert check_sizes(make_encoder(0), "pretrain", (13, 21), "teacher") == []


def test_modes_are_given_back(make_encoder):
    encoder = make_encoder(0).train()
    encoder.net.bn1.eval()
    check_sizes(encoder, "pretrain", (), "teacher")
    assert encoder.training and not encoder.net.bn1.training


def test_a_size_that_a_network_crashes_on_is_refused_with_the_keys():
    with pytest.raises(UserError) as caught:
        build_encoder(EncoderSettings(name="levit_128s"), 64)
    message = str(caught.value)
    assert "'levit_128s' cannot encode images of 64 pixels" in message
    assert "set encoder.input_size=224" in message and "\n" not in message


def test_rows_and_columns_of_what_is_no_square_are_told_apart():
    args = {"img_size": [34, 19], "embed_dim": 24, "depth": 1, "num_heads": 2, "patch_size": 8}
    settings = EncoderSettings(name="vit_tiny_patch16_224", args=args)
    encoder = build_encoder(settings, (34, 19), (0.5,) * 5, (0.2,) * 5)
    (notice,) = check_sizes(encoder, "pretrain", (), "teacher")
    assert "ignores the last 2 of 34 rows and 3 of 19 columns (patch_embed.proj leaves" in notice
    assert "an image of 32x16 pixels is used completely" in notice


def test_views_that_are_no_squares_are_tried():
    encoder = build_encoder(EncoderSettings(name="resnet18"), (32, 16), (0.5,) * 2, (0.2,) * 2)
    assert check_sizes(encoder, "pretrain", ((16, 8), 16), "teacher") == []
