"""Properties of RKD's angles, and the memory they take."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from relational_inputs import COUNT, distance_and_angle, vector_pair
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def all_angles(x_BD: Tensor) -> Tensor:
    difference_BBD = F.normalize(x_BD[None] - x_BD[:, None], dim=2)
    return difference_BBD @ difference_BBD.mT


@pytest.mark.parametrize("chunk", [1, 3, COUNT, 100])
def test_rkd_in_chunks_is_rkd_at_once(chunk):
    s_BD, t_BD = vector_pair()
    whole, chunked = s_BD.clone().requires_grad_(), s_BD.clone().requires_grad_()
    expected = F.smooth_l1_loss(all_angles(whole), all_angles(t_BD))
    _, angle = distance_and_angle(chunked, t_BD, chunk)
    (expected_gradient,) = torch.autograd.grad(expected, whole)
    (gradient,) = torch.autograd.grad(angle, chunked)
    assert torch.allclose(angle, expected, rtol=1e-10)
    assert torch.allclose(gradient, expected_gradient, rtol=1e-8, atol=1e-12)


def test_rkd_keeps_a_far_origin_out_of_its_angles():
    s_BD, t_BD = vector_pair(dtype=torch.float32)
    near = distance_and_angle(s_BD, t_BD, 4)
    far = distance_and_angle(s_BD + 100, t_BD, 4)
    assert torch.allclose(far, near, rtol=1e-4)


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of tensors made inside that are alive, and the most there ever were."""

    def __init__(self):
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in self.sizes:
                    self.sizes[id(storage)] = storage.nbytes()
                    weakref.finalize(storage, self.sizes.pop, id(storage), None)
        self.peak = max(self.peak, sum(self.sizes.values()))
        return result


def peak_angles(count: int, chunk: int) -> float:
    """Most memory held at once by RKD and its gradient, in units of count^3 float32 numbers."""
    s_BD, t_BD = vector_pair(count, torch.float32)
    s_BD.requires_grad_()
    with LiveMemory() as memory:
        distance_and_angle(s_BD, t_BD, chunk).sum().backward()
    return memory.peak / (4 * count**3)


def test_rkd_never_holds_all_angles():
    assert peak_angles(64, chunk=64) > 4
    assert peak_angles(64, chunk=2) < 0.5
