"""Which parameters of a task get no gradient, found without computing anything."""

import copy
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ssdistill.train.microbatch import in_microbatches

if TYPE_CHECKING:
    from ssdistill.train.loop import Training


def may_leave_unused(training: "Training") -> bool:
    """Whether a step may leave parameters without a gradient; the training stays as it is.

    The step is followed by tensors without numbers, on the CPU: its teachers may be too large for
    anything else. Where they cannot follow it, the answer is yes, which costs little time.
    """
    teachers = training.task.teachers.values()
    task = copy.deepcopy(training.task, {id(teacher): teacher for teacher in teachers}).train()
    batch = training.batch(0)
    views = [view.cpu() for view in training.views(batch)]
    found: dict[str, Any] = {field.name: getattr(batch, field.name) for field in fields(batch)}
    batch = replace(batch, **{n: x.cpu() for n, x in found.items() if isinstance(x, Tensor)})
    batch = replace(batch, crops={})
    devices = range(torch.cuda.device_count())
    try:
        with (
            torch.random.fork_rng(devices=devices),
            FakeTensorMode(allow_non_fake_inputs=True),
            in_microbatches(task, len(batch.index_B), training.microbatch),
        ):
            losses = task(views, batch)
        used = _reached([loss.grad_fn for loss in losses.values()])
    except Exception:
        return True
    return any(p.requires_grad and id(p) not in used for p in task.parameters())


def _reached(nodes: list[Any]) -> set[int]:
    """The ids of the leaves of an autograd graph."""
    leaves, seen = set(), set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        nodes += [following for following, _ in node.next_functions]
    return leaves
