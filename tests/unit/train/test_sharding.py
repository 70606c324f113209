"""Arithmetic of sharded teachers, and how their weights are stored; two processes shard one in
``tests/integration/test_shared_training.py``."""

import copy
import re
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from ssdistill.models.backbones import Encoder, EncoderSettings, EncoderSpec, build_encoder
from ssdistill.train.sharding import is_sharded, store_as_cast, teacher_bytes

PAGE = Path(__file__).parents[3] / "docs" / "devices.md"
BYTES_PER_TRAINED_WEIGHT = 16
"""In float32: itself, its gradient and two moments."""


@pytest.fixture(scope="module")
def dinov3() -> Encoder:
    statistics = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    spec = EncoderSpec(name="vit_7b_patch16_dinov3", image_size=256, **statistics)
    with torch.device("meta"):
        return Encoder(spec, timm.create_model(spec.name, num_classes=0))


def test_the_table_of_the_page_is_what_is_computed(dinov3):
    with torch.device("meta"):
        student = timm.create_model("vit_small_patch16_224", num_classes=0)
    trained = BYTES_PER_TRAINED_WEIGHT * sum(p.numel() for p in student.parameters())

    def cell(processes: int, precision: str) -> str:
        return f"{(teacher_bytes(dinov3, processes, precision) + trained) / 1e9:.1f} GB"

    rows = re.findall(r"^\| (\d) \| (\S+ GB) \| (.+?) \| (.+?) \|$", PAGE.read_text(), re.MULTILINE)
    assert [int(row[0]) for row in rows] == [1, 2, 4, 8]
    assert rows[0][2:] == ("–", "–")
    for devices, whole, full, half in rows:
        assert whole == cell(1, "fp32")
        if devices != "1":
            assert (full, half) == tuple(cell(int(devices), p) for p in ("fp32", "bf16"))
            assert half == cell(int(devices), "fp16")


def test_a_part_is_that_of_all_weights_with_two_blocks(dinov3):
    count = sum(p.numel() for p in dinov3.parameters())
    block = sum(p.numel() for p in dinov3.net.blocks[0].parameters())
    assert teacher_bytes(dinov3, 1, "fp32") == 4 * count
    assert teacher_bytes(dinov3, 4, "fp32") == count + 8 * block
    assert 1.99 < teacher_bytes(dinov3, 4, "fp32") / teacher_bytes(dinov3, 4, "bf16") < 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_weights_stored_as_autocast_casts_them_give_the_same_outputs(name, dtype):
    torch.manual_seed(0)
    args = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    args = args if name.startswith("vit") else {"channels": (8, 8, 8, 8)}
    whole = build_encoder(EncoderSettings(name=name, args=args), 16).eval().requires_grad_(False)
    whole.projector, whole.project = nn.Linear(whole.embed_dim, 8).requires_grad_(False), True
    stored = copy.deepcopy(whole)
    store_as_cast(stored, dtype)
    assert {p.dtype for p in stored.parameters()} == {dtype, torch.float32}
    assert not is_sharded(stored)
    x_BCHW = torch.rand(3, 3, 16, 16)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        expected, found = whole(x_BCHW), stored(x_BCHW)
    assert torch.equal(found.embedding_BD, expected.embedding_BD)
    assert torch.equal(found.projection_BP, expected.projection_BP)
