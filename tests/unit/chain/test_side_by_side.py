import numpy as np
import torch

from ssdistill.chain.evaluation import side_by_side
from ssdistill.label_free.agreement import agreement


def test_one_teachers_features_are_left_as_they_are():
    z_ND = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    assert torch.equal(side_by_side([z_ND]), torch.from_numpy(z_ND))


def test_several_teachers_weigh_the_same_whatever_their_scale_and_mean():
    generator = np.random.default_rng(0)
    a_ND, b_ND = (generator.normal(size=(60, width)) for width in (3, 8))
    both, scaled = side_by_side([a_ND, b_ND]), side_by_side([a_ND, 1000 * b_ND + 5])
    assert torch.allclose(both, scaled)
    assert torch.allclose(both[:, :3].norm(), both[:, 3:].norm())
    found = [agreement(torch.from_numpy(z_ND), both, k=5)["agree/cka"] for z_ND in (a_ND, b_ND)]
    assert min(found) > 0.3
