from types import SimpleNamespace

import torch
from torch import nn

from ssdistill.chain.saliency import HEAD_STEPS, iterate_total_losses
from ssdistill.train.task import Task


class Halves(Task):
    """A student of two weights, one of them frozen, behind a head that starts at zero."""

    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = weight
        torch.manual_seed(1)
        self.encoder = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.encoder[0].bias.requires_grad_(False)
        self.head = nn.Linear(3, 3)
        nn.init.zeros_(self.head.weight)

    def forward(self, views, batch):
        return {"match": (self.head(self.encoder(views[0])) - 1).square().mean()}

    def weights_at(self, step, num_steps):
        return {"match": self.weight}


def losses_of(task, count=3):
    torch.manual_seed(0)
    batches = [SimpleNamespace(step=step, index_B=range(4)) for step in range(HEAD_STEPS + count)]
    loader = SimpleNamespace(num_steps=len(batches))
    training = SimpleNamespace(
        task=task,
        loader=loader,
        batches=lambda: batches,
        views=lambda batch: [torch.randn(8, 3)],
        microbatch=None,
    )
    return iterate_total_losses(training, torch.device("cpu"))


def test_heads_learn_first_and_the_student_stays_as_it_is():
    task = Halves()
    before = {k: v.clone() for k, v in task.encoder.state_dict().items()}
    found = list(losses_of(task))
    assert len(found) == 3 and task.head.weight.abs().sum() > 0
    assert all(torch.equal(v, before[k]) for k, v in task.encoder.state_dict().items())


def test_losses_reach_what_the_student_trains_and_nothing_else():
    task = Halves()
    next(losses_of(task)).backward()
    assert task.encoder[0].weight.grad.abs().sum() > 0
    assert task.encoder[0].bias.grad is None and not task.encoder[0].bias.requires_grad


def test_losses_are_weighted():
    # Adam's steps do not depend on the scale of a loss: both heads learn the same.
    once, thrice = (next(losses_of(Halves(weight))).detach() for weight in (1.0, 3.0))
    assert torch.allclose(thrice, 3 * once, rtol=1e-3)


class Headless(Halves):
    """Nothing to train but the student."""

    def __init__(self):
        super().__init__()
        self.head = nn.Identity()


def test_without_heads_every_batch_after_the_first_ones_counts():
    assert len(list(losses_of(Headless(), count=3))) == 3
