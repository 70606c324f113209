import time

import numpy as np
import pytest
import torch
from torch import nn

from ssdistill.measure.lightly_loop import LightlyLoop


def test_steps_are_those_of_simclr_and_prepared_batches_do_not_count(monkeypatch):
    images = np.random.default_rng(0).integers(0, 255, (8, 16, 16, 3)).astype(np.uint8)
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))
    loop = LightlyLoop(
        net, 5, images.__getitem__, 8,
        size=16, batch_size=4, workers=0, device=torch.device("cpu"),
    )  # fmt: skip
    loop.queued, steps = 3, []
    plain = loop._step
    monkeypatch.setattr(loop, "_step", lambda: (plain(), steps.append(loop._batches)))
    ticks = iter([0.0, 2.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    assert loop.turn(6) == pytest.approx(4 * 6 / 2.0)
    assert len(steps) == 3 + 1 + 6
    views = next(loop._batches)
    assert [tuple(view.shape) for view in views] == [(4, 3, 16, 16)] * 2
