"""Modules that take no images."""

import numpy as np
import pytest
import torch
from torch import nn

import ssdistill
from ssdistill.api.networks import encoder
from ssdistill.errors import UserError
from ssdistill.models.wrapped import Wrapped


class Words(nn.Module):
    """Token ids (B, T) to what a language model returns."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 6)

    def forward(self, x_BT):
        return {"pooler_output": self.embedding(x_BT).mean(1)}


IDS_BT = torch.arange(6).view(3, 2)


def test_a_module_of_other_inputs_is_a_model_of_them():
    model = encoder(Words(), example=IDS_BT)
    assert isinstance(model, Wrapped) and model(IDS_BT).embedding_BD.shape == (3, 6)
    other = encoder(Words(), example=IDS_BT, embedding=lambda out: out["pooler_output"])
    assert other.embed_dim == 6


@pytest.mark.parametrize(
    ("module", "options", "said"),
    [
        (Words(), {"taps": {"a": "embedding"}}, "taps is for modules of images; remove it, or ex"),
        (Words(), {"image_size": 32}, "image_size is for modules of images"),
        (Words, {}, "with example, pass a module, not a function or class that makes one"),
    ],
)
def test_what_only_images_have_cannot_be_set(module, options, said):
    with pytest.raises(UserError) as refused:
        encoder(module, example=IDS_BT, **options)
    assert str(refused.value).startswith("ssdistill.encoder: ") and said in str(refused.value)


def test_experiments_are_of_images(tmp_path):
    images_NHWC = np.zeros((8, 16, 16, 3), np.uint8)
    model = encoder(Words(), example=IDS_BT)
    with pytest.raises(UserError, match=r"^Words takes no images, which experiments are of; "):
        ssdistill.compress(model, images_NHWC, root=tmp_path)
