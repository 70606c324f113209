import copy

import pytest
import torch

from ssdistill.compress import Context
from ssdistill.compress.matching import match_embeddings
from ssdistill.compress.recover import Recover
from ssdistill.compress.zeros import Zeros, zero_masks
from ssdistill.errors import UserError
from ssdistill.train.optim import OptimSettings

FAST = OptimSettings(lr=1e-2, warmup=0.0)


def images(count=32):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def distance(first, second):
    pair = [m.eval()(images()).embedding_BD for m in (first, second)]
    return float((pair[0] - pair[1]).square().mean() / pair[1].square().mean())


def context_of(folder, original, **more):
    return Context(lambda n, seed: images(n), folder, original=original, **more)


def test_a_damaged_network_learns_to_be_as_it_was(make_encoder, tmp_path):
    original = make_encoder(0).eval()
    damaged = copy.deepcopy(original)
    with torch.no_grad():
        for parameter in damaged.net.parameters():
            parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
    context = context_of(tmp_path, original, train=match_embeddings(images()))
    recovered = Recover(steps=40, batch_size=16, optim=FAST).apply(damaged, context)
    assert distance(recovered, original) < 0.3 * distance(damaged, original)
    assert context.record["target"] == "original"


def test_the_same_seed_ends_at_the_same_weights(make_encoder, tmp_path):
    original, student = make_encoder(0).eval(), make_encoder(1).eval()
    ends = []
    for seed in (0, 0, 1):
        context = context_of(tmp_path, original, train=match_embeddings(images(), seed))
        ends.append(Recover(steps=2, batch_size=8).apply(student, context).net.state_dict())
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])
    assert any(not torch.equal(ends[0][k], ends[2][k]) for k in ends[0])


def test_without_anything_to_learn_from_it_says_so(make_encoder, tmp_path):
    with pytest.raises(UserError, match="recover requires a distill section"):
        Recover().apply(make_encoder(0), context_of(tmp_path, None))


def test_teachers_come_first_and_the_target_can_be_chosen(make_encoder, tmp_path):
    seen = []

    def train(student, targets, settings):
        seen.append(sorted(targets))
        return student

    more = {"train": train, "teachers": {"teacher": make_encoder(2)}}
    for target in ("auto", "teacher", "original"):
        Recover(target=target).apply(make_encoder(1), context_of(tmp_path, make_encoder(0), **more))
    assert seen == [["teacher"], ["teacher"], ["original"]]


def test_weights_can_be_rewound_to_the_original(make_encoder, tmp_path):
    original, trained = make_encoder(0), make_encoder(1)
    context = context_of(tmp_path, original, train=lambda student, targets, settings: student)
    rewound = Recover(rewind="weights").apply(trained, context).net.state_dict()
    assert all(torch.equal(v, rewound[k]) for k, v in original.net.state_dict().items())
    assert not torch.equal(trained.net.layer1[0].conv1.weight, original.net.layer1[0].conv1.weight)


def test_rewound_weights_that_were_zeroed_stay_zero_through_the_training(make_encoder, tmp_path):
    original, trained = make_encoder(0).eval(), make_encoder(1).eval()
    sparse = Zeros(sparsity=0.6).apply(trained, context_of(tmp_path, original))
    masks = zero_masks(sparse)
    before = {}

    def train(student, targets, settings):
        before.update({k: v.clone() for k, v in student.net.state_dict().items()})
        return match_embeddings(images())(student, targets, settings)

    context = context_of(tmp_path, original, train=train)
    step = Recover(rewind="weights", steps=5, batch_size=8, optim=FAST)
    recovered = dict(step.apply(sparse, context).net.named_parameters())
    assert masks and context.record["masked"] == len(masks)
    dense = dict(original.net.named_parameters())
    for name, mask in masks.items():
        assert (before[name][~mask] == 0).all() and (recovered[name][~mask] == 0).all(), name
        assert torch.equal(before[name][mask], dense[name][mask])
        assert not torch.equal(recovered[name][mask], dense[name][mask])


def test_a_narrower_network_cannot_be_rewound(make_encoder, tmp_path):
    narrow = make_encoder(0)
    narrow.net.layer1[0].conv1 = torch.nn.Conv2d(8, 4, 3, padding=1, bias=False)
    context = context_of(tmp_path, make_encoder(0), train=match_embeddings(images()))
    with pytest.raises(UserError, match=r"rewind=weights: 'layer1.0.conv1.weight' of 'resnet10t'"):
        Recover(rewind="weights").apply(narrow, context)


def test_another_width_of_embedding_is_refused(make_encoder, tmp_path):
    wide = make_encoder(0)
    wide.embed_dim = 17
    context = context_of(tmp_path, wide, train=match_embeddings(images()))
    with pytest.raises(
        UserError, match="has embeddings of width 16, but its target original of width 17"
    ):
        Recover(steps=1).apply(make_encoder(1), context)
