import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from ssdistill.compress import Context
from ssdistill.compress.prune import Prune
from ssdistill.compress.pruning.criteria import score_groups
from ssdistill.compress.pruning.graph import find_groups, masked
from ssdistill.compress.pruning.soundness import verify
from ssdistill.errors import UserError
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.models.wrapped import Wrapped


def tiny():
    """Eight inputs, six channels and two outputs of plain linear layers."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)))
    return Wrapped(net, torch.rand(4, 8)).eval()


def encoder():
    torch.manual_seed(0)
    args = {"layers": (1, 1, 0, 0), "channels": (8, 16, 16, 16), "zero_init_last": False}
    return build_encoder(EncoderSettings(name="resnet10t", args=args, stem_stride=2), 16).eval()


def context(x=None, losses=None, model=None):
    teachers = {"teacher": model or tiny()} if losses else {}
    images = lambda n, seed: torch.rand(16, 8) if x is None else x  # noqa: E731
    return Context(images=images, folder=Path(), losses=losses, teachers=teachers)


def sum_of_outputs(student, targets, count, seed):
    for _ in range(count):
        yield student(student.example(4)).embedding_BD.sum()


def scores_of(criterion, model=None, **given):
    model = model or tiny()
    groups = find_groups(model)
    return groups, score_groups(criterion, model, groups, context(**given))


@torch.no_grad()
def test_l1_and_l2_are_the_mean_norms_of_what_a_channel_touches():
    model = tiny()
    first, second = model.net[0][0].weight, model.net[0][2].weight
    for criterion, power in (("l1", 1), ("l2", 2)):
        _, (score_C,) = scores_of(criterion, model)
        rows_C, columns_C = (w.abs().pow(power) for w in (first, second.T))
        assert torch.allclose(score_C, (rows_C.sum(1) + columns_C.sum(1)) / 2)


def test_lamp_is_the_share_of_all_that_are_no_smaller():
    _, (square_C,) = scores_of("l2")
    _, (lamp_C,) = scores_of("lamp")
    for own, lamp in zip(square_C, lamp_C, strict=True):
        assert lamp == pytest.approx(float(own / square_C[square_C >= own].sum()), rel=1e-5)
    assert lamp_C.max() == 1


@torch.no_grad()
def test_activation_is_weight_times_the_norm_of_its_input():
    model, x = tiny(), torch.rand(16, 8)
    _, (score_C,) = scores_of("activation", model, x=x)
    hidden_BC = model.net[0][:2](x)
    norm_C = hidden_BC.square().mean(0).sqrt()
    assert torch.allclose(score_C, model.net[0][2].weight.abs().sum(0) * norm_C)


def test_activation_adds_up_kernels_and_images():
    model, x_BCHW = encoder(), torch.rand(40, 3, 16, 16)
    groups, scores = scores_of("activation", model, x=x_BCHW)
    seen = {}
    model.net.layer1[0].conv2.register_forward_hook(lambda m, args, _: seen.update(x=args[0]))
    with torch.no_grad():
        model(x_BCHW)
    norm_C = seen["x"].square().mean((0, 2, 3)).sqrt()
    weight_C = model.net.layer1[0].conv2.weight.abs().sum((0, 2, 3))
    score_C = dict(zip((g.root for g in groups), scores, strict=True))["layer1.0.conv1"]
    assert torch.allclose(score_C, weight_C * norm_C, rtol=1e-4)


@torch.no_grad()
def test_taylor_is_how_much_a_linear_loss_changes_without_the_channel():
    model = tiny()
    groups, (score_C,) = scores_of("taylor", model, losses=sum_of_outputs)
    x = model.example(4)
    loss = model(x).embedding_BD.sum()
    for unit in range(6):
        kept = [torch.tensor([i for i in range(6) if i != unit])]
        change = masked(model, groups, kept)(x).embedding_BD.sum() - loss
        assert score_C[unit] == pytest.approx(abs(float(change)), abs=1e-5)


def test_hessian_is_half_the_square_of_weight_times_gradient():
    model = tiny()
    _, (score_C,) = scores_of("hessian", model, losses=sum_of_outputs)
    weight = model.net[0][2].weight
    (gradient,) = torch.autograd.grad(model(model.example(4)).embedding_BD.sum(), weight)
    assert torch.allclose(score_C, (weight * gradient).square().sum(0) / 2, rtol=1e-4)


def test_bn_scale_leaves_layers_without_a_batch_norm_alone():
    assert scores_of("bn_scale")[1] == [None]
    model = encoder()
    with torch.no_grad():
        model.net.layer1[0].bn1.weight.copy_(torch.arange(8.0) - 4)
    groups, scores = scores_of("bn_scale", model)
    score_C = dict(zip((g.root for g in groups), scores, strict=True))["layer1.0.conv1"]
    assert score_C.tolist() == [4, 3, 2, 1, 0, 1, 2, 3]


def test_random_scores_follow_the_seed_and_differ_between_layers():
    model = encoder()
    groups = find_groups(model)
    one, same, other = (
        score_groups("random", model, groups, context(), seed=seed) for seed in (0, 0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(one[0][:8], one[1][:8])


def test_find_groups_takes_a_score():
    def by(criterion):
        return lambda model, groups: score_groups(criterion, model, groups, context(), 256, 0)

    (group,) = find_groups(tiny(), score=by("l1"))
    assert torch.equal(group.score_C, scores_of("l1")[1][0])
    assert find_groups(tiny(), score=by("bn_scale")) == []


@pytest.mark.parametrize("criterion", ["taylor", "hessian"])
def test_a_loss_is_needed_where_it_is_asked(criterion):
    message = f"prune: criterion={criterion} requires a distill section"
    with pytest.raises(UserError, match=f"^{message}$"):
        Prune(ratio=0.5, round_to=1, criterion=criterion).apply(tiny(), context())


def test_no_images_for_activation_are_said():
    with pytest.raises(UserError, match="activation requires images"):
        scores_of("activation", x=torch.zeros(0, 8))


@pytest.mark.parametrize("criterion", ["activation", "taylor", "hessian"])
def test_scoring_leaves_the_model_as_it_was(criterion):
    model = encoder().train()
    model.net.bn1.eval().requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    trained = [parameter.requires_grad for parameter in model.parameters()]
    given = context(torch.rand(4, 3, 16, 16), sum_of_outputs, model)
    pruned = Prune(ratio=0.5, round_to=4, criterion=criterion).apply(model, given)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert trained == [parameter.requires_grad for parameter in model.parameters()]
    assert all(p.grad is None for m in (model, pruned) for p in m.parameters())
    hooks = [
        m._forward_pre_hooks or m._forward_hooks for m in (*model.modules(), *pruned.modules())
    ]
    assert not any(hooks)
    assert modes[0] == model.training


def test_activations_are_those_of_a_network_in_eval_mode():
    model = encoder()
    x_BCHW = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    groups = find_groups(model)
    calm = score_groups("activation", model, groups, context(x_BCHW))
    excited = score_groups("activation", model.train(), groups, context(x_BCHW))
    assert all(torch.equal(a, b) for a, b in zip(calm, excited, strict=True))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training


def test_one_number_that_is_not_finite_is_enough_to_refuse_a_pruned_model():
    model = tiny()
    pruned = copy.deepcopy(model)
    body = pruned.net[0]
    body[0], body[2] = nn.Linear(8, 5), nn.Linear(5, 2)
    with torch.no_grad():
        body[2].bias[0] = float("nan")
    with pytest.raises(UserError, match="non-finite embeddings"):
        verify(model, pruned)
