"""Checks in two processes with half a batch each, which must be one with the whole batch."""

import json
import multiprocessing
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.losses import Loss
from ssdistill.losses.base.bank import Bank, IndexMemory, TeacherMean
from ssdistill.testing.candidate import Candidate, Check, demand, skip
from ssdistill.testing.losses import build_loss, fixed_statistics, make_batch
from ssdistill.testing.synthetic import make_outputs, mapped
from ssdistill.testing.tiny_networks import tiny_transformer

WORLD, LOSS_BATCH, LOSS_STEPS, METHOD_BATCH, METHOD_STEPS = 2, 12, 2, 8, 3
LIMIT = 300
"""Seconds."""
KEY = "in two processes"
Results = dict[str, Tensor]
Train = Callable[[Candidate, int, int], Results]
"""Train as one of some processes, by its number and how many there are."""
Arguments = tuple[Path, Train, list[Candidate]]


def train_loss(candidate: Candidate, number: int, size: int) -> Results:
    """Losses, gradients and remembered vectors of two steps on a part of every batch."""
    share = LOSS_BATCH // size
    part = slice(number * share, (number + 1) * share)
    centered = "center_teacher" in candidate.schema.model_fields
    changes: dict[str, Any] = {"center_teacher": True} if centered else {}
    loss_of = build_loss(candidate, None, 3, **changes)
    results: Results = {}
    for step in range(LOSS_STEPS):
        results |= _loss_step(loss_of, step, part)
        loss_of.after_step(step, LOSS_STEPS)
    for name, module in loss_of.named_modules():
        if isinstance(module, Bank | IndexMemory | TeacherMean):
            for buffer_name, buffer in module.named_buffers():
                results[f"state/{name}.{buffer_name}"] = buffer
    return results


def _loss_step(loss_of: Loss, step: int, part: slice) -> Results:
    # The whole batch is the same on every process.
    torch.manual_seed(step)
    batch = _part_of(make_batch(LOSS_BATCH, step, LOSS_STEPS), part)
    whole = make_outputs(loss_of, LOSS_BATCH, max(2, loss_of.views))
    student, teacher = (mapped(side, lambda x: x.detach()[part]) for side in whole)
    for view in [*student, *student.extra.values()]:
        for x in (view.embedding_BD, *view.maps.values()):
            x.requires_grad_()
    index_B = batch.index_B
    torch.manual_seed(100 * len(index_B) + int(index_B[0]))  # no process draws like another
    loss = loss_of(student, teacher, batch)
    loss_of.zero_grad()
    if loss.requires_grad:
        loss.backward()
    results = {f"loss/{step}": loss.detach()}
    for view, representation in enumerate(student):
        leaves = {"embedding": representation.embedding_BD, **representation.maps}
        for name, x in leaves.items():
            if x.grad is not None:
                results[f"student/{step}/{view}/{name}"] = x.grad
    for name, parameter in loss_of.named_parameters():
        if parameter.requires_grad and parameter.grad is not None:
            results[f"parameter/{step}/{name}"] = parameter.grad.clone()
    return results


def train_method(candidate: Candidate, number: int, size: int) -> Results:
    """Losses, gradients and the state after a few steps on a part of every batch."""
    share = METHOD_BATCH // size
    part = slice(number * share, (number + 1) * share)
    encoder = tiny_transformer(3, depth=1)
    method = candidate.build(encoder, changes={"steps": METHOD_STEPS}).train()
    fixed_statistics(method)
    results: Results = {}
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.01)
    for step in range(METHOD_STEPS):
        generator = torch.Generator().manual_seed(step)
        views = [torch.rand(METHOD_BATCH, 3, 16, 16, generator=generator) for _ in method.recipes]
        losses = method([v[part] for v in views], _part_of(_method_batch(step), part))
        weights = method.weights_at(step, METHOD_STEPS)
        torch.stack([weights[n] * loss for n, loss in losses.items()]).sum().backward()
        for name, parameter in trained.items():
            # What DistributedDataParallel does between the processes.
            if parameter.grad is not None and size > 1:
                dist.all_reduce(parameter.grad)
                parameter.grad /= size
            if step == 0 and parameter.grad is not None:
                results[f"gradient/{name}"] = parameter.grad.clone()
        results |= {f"loss/{step}/{name}": loss.detach() for name, loss in losses.items()}
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(step, METHOD_STEPS)
    return results | {f"state/{name}": value for name, value in method.state_dict().items()}


def _part_of(batch: Batch, part: slice) -> Batch:
    # A process knows nothing of the images of another one.
    images: Any = batch.images_BHWC
    return replace(batch, images_BHWC=images[part], index_B=batch.index_B[part])


def _method_batch(step: int) -> Batch:
    images = torch.zeros(METHOD_BATCH, 1, 1, 3, dtype=torch.uint8)
    return Batch(images, torch.arange(METHOD_BATCH), 0, step, METHOD_STEPS)


def train_together(train: Train, candidates: Sequence[Candidate]) -> None:
    """Train all candidates in two processes, once; the checks find the results in ``known``."""
    with tempfile.TemporaryDirectory() as name:
        arguments = Path(name), train, list(candidates)
        if any(candidate.cls.__module__ == "__main__" for candidate in candidates):
            _fork(arguments)
        else:
            _start(arguments)
        ranks = [torch.load(Path(name) / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]
    for position, candidate in enumerate(candidates):
        candidate.known[KEY] = [results[position] for results in ranks]


def _fork(arguments: Arguments) -> None:
    """Copies of this process know the classes of its script or notebook."""
    # A copy of a process that has used a GPU cannot train.
    if "fork" not in multiprocessing.get_all_start_methods() or torch.cuda.is_initialized():
        skip("a class of a script cannot be sent to other processes; put it in a module")
    start = torch.multiprocessing.start_processes
    start(process, arguments, nprocs=WORLD, start_method="fork")


def _start(arguments: Arguments) -> None:
    """Start processes that import the modules of the classes, but not the script that checks."""
    job = pickle.dumps(arguments)
    code = "import json, pickle, sys; sys.path[:] = json.loads(sys.argv[2]); "
    code += f"from {__name__} import process; "
    code += "process(int(sys.argv[1]), *pickle.load(sys.stdin.buffer))"
    pipe = subprocess.PIPE
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), json.dumps(sys.path)],
            stdin=pipe,
            stdout=subprocess.DEVNULL,
            stderr=pipe,
        )
        for rank in range(WORLD)
    ]
    try:
        with ThreadPoolExecutor(WORLD) as pool:  # neither waits for a reader of what it prints
            said = list(pool.map(lambda one: one.communicate(job, timeout=LIMIT)[1], started))
    finally:
        for one in started:
            one.kill()
    for one, text in zip(started, said, strict=True):
        last = (text.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        demand(one.returncode == 0, f"one of two processes fails: {last}")


def process(rank: int, folder: Path, train: Train, candidates: list[Candidate]) -> None:
    """Train all candidates as one of the processes, and write the results to the folder."""
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=WORLD, timeout=timedelta(seconds=LIMIT)
    )
    torch.save([train(candidate, rank, WORLD) for candidate in candidates], folder / f"{rank}.pt")
    dist.destroy_process_group()


def _ranks(candidate: Candidate, train: Train) -> list[Results]:
    if KEY not in candidate.known:
        train_together(train, [candidate])
    return candidate.known[KEY]


def every_process_remembers_the_same(candidate: Candidate) -> None:
    """Numbers in both processes are finite, and what is remembered of batches is the same."""
    first, second = _ranks(candidate, train_loss)
    for name, value in first.items():
        demand(torch.isfinite(value).all(), f"{name} has NaN or infinity in two processes")
        if name.startswith("state/"):
            demand(torch.equal(value, second[name]), f"{name} differs between two processes")


def loss_of_a_sharded_batch_is_that_of_the_whole(candidate: Candidate) -> None:
    """Where ``exact_under_sharding`` is set, two processes train as one with the whole batch."""
    ranks = _ranks(candidate, train_loss)
    for name, expected in train_loss(candidate, 0, 1).items():
        parts = [results[name] for results in ranks]
        if name.startswith("student/"):
            sharded = torch.cat(parts) / WORLD
        else:
            sharded = torch.stack(parts).double().mean(0).to(expected.dtype)
        demand(sharded.shape == expected.shape, f"{name} has another shape in two processes")
        gap = (sharded - expected).abs().max()
        near = gap <= 1e-5 * expected.abs().max()
        demand(near, f"{name} differs by {float(gap):.2g} in two processes; unset the flag")


def two_processes_pretrain_as_one_does(candidate: Candidate) -> None:
    """Two processes with half a batch each pretrain as one, batch statistics aside."""
    first, second = _ranks(candidate, train_method)
    for name, expected in train_method(candidate, 0, 1).items():
        if name.startswith("state/"):
            demand(torch.equal(first[name], second[name]), f"{name} differs between processes")
        found = torch.stack([first[name], second[name]]).double().mean(0)
        gap = (found - expected.double()).abs().max()
        # Rounding grows over the steps; an error of sharding would be as large as the value.
        near = gap <= 2e-4 * expected.abs().max() + 1e-6
        demand(near, f"{name} differs by {float(gap):.2g} in two processes; gather the batch")


LOSSES_IN_TWO_PROCESSES = {
    "two_processes": Check(every_process_remembers_the_same),
    "exact_under_sharding": Check(
        loss_of_a_sharded_batch_is_that_of_the_whole,
        lambda candidate: bool(candidate.cls.exact_under_sharding),
    ),
}
METHODS_IN_TWO_PROCESSES = {"two_processes": Check(two_processes_pretrain_as_one_does)}
