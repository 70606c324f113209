import copy

import numpy as np
import pytest
import torch
from torch import nn

from ssdistill.data.batch import Batch
from ssdistill.losses.base.prototypes import sinkhorn
from ssdistill.pretrain.dino import DINO, DINOProjector

PROJECTOR = DINOProjector(hidden_dim=12, output_dim=6)


def make_batch(step=0, num_steps=10, count=4):
    images = torch.zeros(count, 16, 16, 3, dtype=torch.uint8)
    return Batch(images, torch.arange(count), 0, step, num_steps)


def make_views(count=4, small=0, seed=1):
    generator = torch.Generator().manual_seed(seed)
    sizes = [16, 16] + [8] * small
    return [torch.rand(count, 3, size, size, generator=generator) for size in sizes]


@pytest.fixture
def make_dino(make_encoder):
    def make(seed=0, **settings):
        settings = {"num_prototypes": 10, "projector": PROJECTOR, "freeze_last": 0.0} | settings
        return DINO(make_encoder(seed), **settings).train()

    return make


def apart(dino):
    """A teacher unlike its student, so that mixing them up changes the loss."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in dino.teacher.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return dino


def cosines_of(network, view):
    encoder, projector, prototypes = network
    z = projector(encoder(view).embedding_BD).detach().numpy().astype(np.float64)
    w = prototypes.weight.detach().numpy().astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    return z @ (w / np.linalg.norm(w, axis=1, keepdims=True)).T


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def student_of(dino):
    return dino.encoder, dino.projector, dino.prototypes


def by_hand(dino, views, center, temperature=0.04):
    """Cross-entropy of all pairs of different views whose teacher is one of the first two."""
    terms = []
    for theirs in range(2):
        p = softmax((cosines_of(dino.teacher, views[theirs]) - center) / temperature)
        for ours, view in enumerate(views):
            if ours != theirs:
                log = np.log(softmax(cosines_of(student_of(dino), view) / 0.1))
                terms.append(-(p * log).sum(1).mean())
    assert len(terms) == 2 * (len(views) - 1)
    return np.mean(terms)


@pytest.mark.parametrize("small", [0, 3])
def test_dino_crosses_each_view_with_the_teacher_of_every_other_full_size_view(make_dino, small):
    dino = apart(make_dino()).eval()
    dino.center_K.copy_(torch.linspace(-0.1, 0.2, 10))
    views = make_views(small=small)
    expected = by_hand(dino, views, dino.center_K.double().numpy())
    assert dino(views, make_batch())["dino"].item() == pytest.approx(expected, rel=1e-4)
    assert by_hand(dino, views, 0.0) != pytest.approx(expected, rel=1e-3)


def test_dinos_center_moves_after_the_loss_by_the_mean_over_both_teacher_views(make_dino):
    fresh, moved = make_dino(), make_dino()
    before = torch.linspace(-0.2, 0.2, 10)
    views = make_views(small=1)
    for dino in (fresh, moved):
        dino.center_K.copy_(before)
        for module in dino.modules():  # statistics of the batch would tell the passes apart
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    moved.center_momentum = 0.0
    mean = np.concatenate([cosines_of(fresh.teacher, view) for view in views[:2]]).mean(0)
    first = fresh(views, make_batch())["dino"].item()
    assert moved(views, make_batch())["dino"].item() == first
    assert np.allclose(fresh.center_K, 0.9 * before.numpy() + 0.1 * mean, atol=1e-6)
    assert np.allclose(moved.center_K, mean, atol=1e-6)
    assert fresh(views, make_batch())["dino"].item() != first


def test_dinos_center_stays_in_evaluation(make_dino):
    dino = make_dino().eval()
    dino(make_views(), make_batch())
    assert not dino.center_K.any()


def test_dino_takes_sinkhorns_assignments_of_both_teacher_views_together(make_dino):
    dino = apart(make_dino(centering="sinkhorn")).eval()
    views = make_views()
    logits = [cosines_of(dino.teacher, view) for view in views]
    target = sinkhorn(torch.from_numpy(np.concatenate(logits)), 0.04).numpy().reshape(2, 4, 10)
    logs = [np.log(softmax(cosines_of(student_of(dino), view) / 0.1)) for view in views]
    expected = -((target[0] * logs[1]).sum(1).mean() + (target[1] * logs[0]).sum(1).mean()) / 2
    assert dino(views, make_batch())["dino"].item() == pytest.approx(expected, rel=1e-4)
    assert "center_K" not in dino.state_dict()


def test_dinos_teacher_sees_full_size_views_only(make_dino):
    dino = make_dino()
    sizes = []
    dino.teacher[0].register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[2:]))
    dino(make_views(small=4), make_batch())
    assert set(sizes) == {(16, 16)}
    assert [len(z) for z in dino.last_embeddings] == [4] * 6


def test_dinos_gradient_reaches_the_student_and_never_the_teacher(make_dino):
    dino = apart(make_dino())
    for module in dino.encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm starts residual branches at zero
    dino(make_views(), make_batch())["dino"].backward()
    assert all(p.grad is None and not p.requires_grad for p in dino.teacher.parameters())
    weights = [p for p in nn.ModuleList(student_of(dino)).parameters() if p.ndim > 1]
    assert all(p.grad is not None and p.grad.any() for p in weights)


def test_dinos_prototypes_are_fixed_for_the_first_share_of_the_training(make_dino):
    dino = apart(make_dino(freeze_last=0.3))
    for step, frozen in [(0, True), (2, True), (3, False), (9, False)]:
        dino.zero_grad()
        dino(make_views(), make_batch(step))["dino"].backward()
        assert (dino.prototypes.weight.grad is None) == frozen
        assert dino.projector.layers[0].weight.grad.any()


def test_dinos_teacher_temperature_warms_up_linearly(make_dino):
    dino = make_dino(temperature_teacher=0.07, temperature_warmup=0.3)
    found = [dino.temperature_at(step, 100) for step in (0, 15, 30, 99)]
    assert found == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert make_dino().temperature_at(5, 100) == 0.04
    views = make_views()
    apart(dino).eval()
    assert dino(views, make_batch(0))["dino"].item() == pytest.approx(
        by_hand(dino, views, 0.0, 0.04), rel=1e-4
    )
    assert dino(views, make_batch(9))["dino"].item() == pytest.approx(
        by_hand(dino, views, 0.0, 0.07), rel=1e-4
    )


def test_dinos_teacher_starts_as_the_student_and_follows_it_by_a_cosine(make_dino):
    dino = make_dino()
    student = nn.ModuleList(student_of(dino))
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(student.parameters(), dino.teacher.parameters(), strict=True)
    )
    for step, share in [(0, 0.004), (5, 0.002)]:
        with torch.no_grad():
            dino.prototypes.weight.fill_(1.0)
            dino.teacher[2].weight.fill_(0.0)
        dino.after_step(step, 10)
        assert dino.teacher[2].weight.mean().item() == pytest.approx(share, rel=1e-3)


def test_dinos_loss_falls(make_dino):
    dino = make_dino(momentum=0.9)
    optimizer = torch.optim.SGD([p for p in dino.parameters() if p.requires_grad], lr=0.5)
    losses = []
    for step in range(12):
        loss = dino(make_views(), make_batch(step, 12))["dino"]
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        dino.after_step(step, 12)
    assert losses[-1] < losses[0]


def test_dinos_loss_under_autocast_is_float32_and_close(make_dino):
    dino = apart(make_dino()).eval()
    exact = dino(make_views(), make_batch())["dino"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = dino(make_views(), make_batch())["dino"]
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=0.05)


def test_dino_resumes_bit_by_bit(make_dino):
    dino = make_dino()
    dino(make_views(), make_batch(0))
    dino.after_step(0, 10)
    other = make_dino(seed=1)
    other.load_state_dict(copy.deepcopy(dino.state_dict()))
    later = make_views(seed=2)
    assert torch.equal(dino(later, make_batch(1))["dino"], other(later, make_batch(1))["dino"])
    assert torch.equal(dino.center_K, other.center_K)


def test_dinos_projector_is_three_linear_layers_with_gelus_before_the_unit_length(make_encoder):
    dino = DINO(make_encoder(), num_prototypes=4)
    layers = list(dino.projector.layers)
    assert [type(layer) for layer in layers] == [nn.Linear, nn.GELU] * 2 + [nn.Linear]
    widths = [(m.in_features, m.out_features) for m in layers if isinstance(m, nn.Linear)]
    assert widths == [(16, 2048), (2048, 2048), (2048, 256)]
    assert all(layer.bias is not None for layer in layers[::2])
    assert layers[0].weight.std().item() == pytest.approx(0.02, rel=0.1)
    normed = DINOProjector(hidden_dim=8, batch_norm="hidden").build(5)
    assert [type(m) for m in normed.layers][:3] == [nn.Linear, nn.BatchNorm1d, nn.GELU]


def test_what_is_kept_is_the_teacher(make_dino):
    dino = make_dino()
    encoder, projector = dino.exported
    assert (encoder, projector) == (dino.teacher[0], dino.teacher[1])
