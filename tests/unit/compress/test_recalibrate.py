import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from ssdistill.compress import Context, Step
from ssdistill.compress.fitting.consumers import likeness
from ssdistill.compress.recalibrate import Recalibrate, norms_of, recalibrate
from ssdistill.errors import UserError
from ssdistill.models.wrapped import Wrapped
from ssdistill.settings.registry import STEPS


def vectors(count=96):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 6, generator=generator) * torch.arange(1, 7) + 2


def dense(dropout=0.5):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(dropout), nn.Linear(12, 8)
    )
    model = Wrapped(net.eval(), vectors(2), name="tiny")
    return recalibrate(model.eval(), [vectors()])


def shifted():
    """As after a change of weights that the statistics know nothing of."""
    model = dense()
    model.net[1].running_mean += torch.linspace(-20, 20, 12)
    model.net[1].running_var *= torch.logspace(-1, 2, 12)
    return model


def context_of(x=None, **networks):
    x = vectors() if x is None else x
    return Context(images=lambda n, seed: x[:n], folder=Path(), **networks)


def test_the_registry_finds_the_step_and_its_settings():
    step = STEPS.build(STEPS.schema("recalibrate")(images=32))
    assert isinstance(step, Step) and isinstance(step, Recalibrate) and step.images == 32


def test_statistics_are_plain_averages_over_the_batches_without_dropout():
    model, x = shifted(), vectors(80)
    found = recalibrate(model, x.tensor_split(4)).net[1]
    with torch.no_grad():
        parts = model.net[0](x).tensor_split(4)
    mean = torch.stack([part.mean(0) for part in parts]).mean(0)
    variance = torch.stack([part.var(0) for part in parts]).mean(0)
    assert torch.allclose(found.running_mean, mean, atol=1e-5)
    assert torch.allclose(found.running_var, variance, rtol=1e-4)
    assert found.momentum == model.net[1].momentum == 0.1


def test_dropout_stays_off_and_nothing_but_statistics_changes():
    model = shifted()
    model.net.add_module("late", nn.BatchNorm1d(8))
    one, two = (recalibrate(model, vectors().split(32)) for _ in range(2))
    assert torch.equal(one.net.late.running_var, two.net.late.running_var)
    for name, parameter in one.net.named_parameters():
        assert torch.equal(parameter, model.net.get_parameter(name))


def test_better_statistics_are_taken():
    model, reference, context = shifted(), dense(), context_of()
    context.before = reference
    found = Recalibrate(images=64).apply(model, context)
    record, unseen = context.record, vectors()[64:]
    assert record["accepted"] == 1 and record["norms"] == 1
    assert record["cka_before"] == pytest.approx(likeness(model, reference, unseen))
    assert record["cka_after"] == pytest.approx(likeness(found, reference, unseen))
    assert record["cka_after"] > record["cka_before"] + 0.05


def test_worse_statistics_are_not():
    reference = dense()
    model, context = copy.deepcopy(reference), context_of(before=reference)
    found = Recalibrate(images=16, batch_size=2).apply(model, context)
    assert context.record["accepted"] == 0 and found is not model
    assert context.record["cka_after"] < context.record["cka_before"] == pytest.approx(1)
    assert torch.equal(found.net[1].running_var, model.net[1].running_var)


def test_the_original_stands_in_for_the_network_before():
    context = context_of(original=dense())
    Recalibrate(images=64).apply(shifted(), context)
    assert context.record["accepted"] == 1


def test_the_given_model_stays_as_it_was():
    model, reference = shifted(), dense()
    model.net[1].train()
    states = [copy.deepcopy(m.net.state_dict()) for m in (model, reference)]
    found = Recalibrate(images=64).apply(model, context_of(before=reference))
    for given, state in zip((model, reference), states, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in given.net.state_dict().items())
    assert found.net[1].training and not found.net[3].training
    assert model.net[1].training and not reference.net.training


def test_a_single_input_is_never_left_over():
    Recalibrate(images=9, batch_size=8).apply(shifted(), context_of(before=dense()))


def test_norms_without_statistics_do_not_count():
    model = Wrapped(nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False)), vectors(2))
    assert norms_of(model) == [] and len(norms_of(dense())) == 1


def broken():
    model = shifted()
    with torch.no_grad():
        model.net[4].weight[0, 0] = float("inf")
    return model


@pytest.mark.parametrize(
    ("model", "context", "words"),
    [
        (shifted, lambda: context_of(), "recalibrate requires the uncompressed network"),
        (broken, lambda: context_of(before=dense()), "4.weight"),
        (shifted, lambda: context_of(vectors(7), before=dense()), "at least 8 inputs, got 7"),
        (
            lambda: Wrapped(nn.Linear(6, 3), vectors(2), name="plain"),
            lambda: context_of(before=dense()),
            "'plain' has no batch norm: remove this step",
        ),
        (
            lambda: type("File", (), {"path": "m.onnx", "runtime": "onnxruntime"})(),
            lambda: context_of(before=dense()),
            "recalibrate cannot follow quantize or export",
        ),
    ],
)
def test_what_cannot_be_done_is_said(model, context, words):
    with pytest.raises(UserError, match=words):
        Recalibrate().apply(model(), context())
