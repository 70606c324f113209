"""Rows of recorded outputs: what is written is what is read, to the rounding of float16."""

import pytest
import torch

from ssdistill.distill.cache.layout import Layout
from ssdistill.errors import UserError
from ssdistill.models.representation import Representation


def outputs_of(dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    z_BD, p_BP, m_BCHW = (
        (scale * torch.randn(5, *shape, generator=generator)).to(dtype)
        for shape in ((7,), (3,), (2, 4, 3))
    )
    return {
        1: Representation(z_BD, p_BP, {"layer3": m_BCHW}),
        "rotated_90": Representation(2 * z_BD, None, {"attention:blocks.1": -m_BCHW}),
    }


def tensors(representation):
    maps = representation.maps
    return [representation.embedding_BD, representation.projection_BP, *maps.values()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_hold_every_output_of_every_view(dtype):
    live = outputs_of(dtype)
    layout = Layout.of(live)
    row_BW = torch.from_numpy(layout.pack(live, "t"))
    assert row_BW.shape == (5, layout.width) and layout.width == 7 + 3 + 24 + 7 + 24
    found = layout.unpack(row_BW)
    assert list(found) == [1, "rotated_90"]
    for view, representation in live.items():
        assert list(found[view].maps) == list(representation.maps)
        for was, now in zip(tensors(representation), tensors(found[view]), strict=True):
            if was is None:
                assert now is None
                continue
            assert (now.dtype, now.shape) == (dtype, was.shape)
            # Seven bits after the point of a bfloat16 fit into the ten of a float16.
            assert torch.equal(now, was if dtype == torch.bfloat16 else was.half().float())


def test_a_row_says_what_it_is_made_of():
    assert [str(column) for column in Layout.of(outputs_of(torch.bfloat16)).columns][:3] == [
        "view 1: embedding 7 bfloat16",
        "view 1: projection 3 bfloat16",
        "view 1: layer3 2x4x3 bfloat16",
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (7e4, r"7e\+04 in its embedding of view 1, beyond float16 \(65504\); set cache=null"),
        (float("nan"), "gives nan in its embedding"),
        (float("inf"), "gives inf in its embedding"),
    ],
)
def test_what_float16_cannot_hold_is_refused(value, message):
    live = outputs_of()
    layout = Layout.of(live)
    live[1].embedding_BD[2, 3] = value
    with pytest.raises(UserError, match=rf"teacher 'big' .*{message}"):
        layout.pack(live, "big")


def test_the_largest_number_is_not():
    live = outputs_of()
    live[1].embedding_BD[2, 3] = 65504
    Layout.of(live).pack(live, "t")


@pytest.mark.parametrize(("scale", "refused"), [(1e-7, True), (1e-5, True), (1e-2, False)])
def test_outputs_too_small_for_float16_are_refused(scale, refused):
    live = outputs_of(scale=scale)
    if not refused:
        Layout.of(live).pack(live, "t")
        return
    with pytest.raises(UserError, match=r"of which float16 loses .*%; set cache=null"):
        Layout.of(live).pack(live, "t")


def test_a_few_small_numbers_among_others_and_zeros_are_kept():
    live = outputs_of()
    live[1].embedding_BD[0] = 1e-7
    live[1].maps["layer3"].zero_()
    Layout.of(live).pack(live, "t")
