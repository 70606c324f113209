"""Inputs for the tests of the prototype and logit losses."""

import torch
from hypothesis import settings
from hypothesis import strategies as st

from ssdistill.data.batch import Batch
from ssdistill.testing.synthetic import make_outputs, make_shapes, make_teacher_fit

BATCH = 8
SEEDS = st.integers(0, 2**31 - 1)
FEW = settings(max_examples=25, deadline=None)


def batch_of(step=0, num_steps=10):
    images = torch.zeros(BATCH, 1, 1, 3, dtype=torch.uint8)
    return Batch(images, torch.arange(BATCH), 0, step, num_steps)


def built(kind, **chosen):
    torch.manual_seed(0)
    loss = kind(make_shapes(), **chosen).train()
    loss.fit_teacher(make_teacher_fit(loss.shapes, loss.shapes.num_samples))
    return loss


def inputs_of(loss, seed=1):
    torch.manual_seed(seed)
    return make_outputs(loss, BATCH, loss.views)


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
