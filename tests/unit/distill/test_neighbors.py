import numpy as np
import pytest
import torch

from ssdistill.distill.neighbors import nearest_neighbors
from ssdistill.errors import UserError


def test_a_bag_holds_the_five_images_most_like_an_image():
    angle_N = torch.tensor([0.0, 0.1, 0.3, 0.6, 1.0, 1.5, 2.1])
    bags = nearest_neighbors(torch.stack([angle_N.cos(), angle_N.sin()], 1))
    assert bags.dtype == np.int64
    assert bags[:2].tolist() == [[1, 2, 3, 4, 5], [0, 2, 3, 4, 5]]
    assert bags[6].tolist() == [5, 4, 3, 2, 1]


def test_too_few_images_for_a_bag_are_refused():
    with pytest.raises(UserError, match="k=5 neighbors requested, but only 5 images"):
        nearest_neighbors(torch.randn(5, 3))
