import copy

import numpy as np
import pytest
import torch
from torch import nn

from ssdistill.data.batch import Batch
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.pretrain.moco import MoCo, MoCoProjector

IMAGES = torch.zeros(8, 16, 16, 3, dtype=torch.uint8)
SMALL = {"queue": 16, "bn_splits": 2, "projector": MoCoProjector(output_dim=5)}


def at_step(step, count=8):
    return Batch(IMAGES[:count], torch.arange(count), 0, step, 10)


def two_views(seed=1, count=8):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(count, 3, 16, 16, generator=generator) for _ in range(2)]


@pytest.fixture
def make_moco(make_encoder):
    def make(seed=0, **settings):
        method = MoCo(make_encoder(seed), **SMALL | settings).train()
        for module in [*method.encoder.modules(), *method.target.modules()]:
            if isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)  # timm starts residual branches at zero
        return method

    return make


def unit_rows(x_BP):
    x_BP = x_BP.detach().numpy().astype(np.float64)
    return x_BP / np.linalg.norm(x_BP, axis=1, keepdims=True)


def info_nce_by_hand(q_BP, k_BP, queue_KP, temperature):
    losses = []
    for q_P, k_P in zip(q_BP, k_BP, strict=True):
        positive = np.exp(q_P @ k_P / temperature)
        negatives = sum(np.exp(q_P @ n_P / temperature) for n_P in queue_KP)
        losses.append(-np.log(positive / (positive + negatives)))
    return np.mean(losses)


@torch.no_grad()
def rows_of(encoder, projector, view, groups):
    """Unit rows whose batch-norm statistics are those of each group of indices."""
    found = np.empty((len(view), 5))
    for group in groups:
        found[np.array(group)] = unit_rows(projector(encoder(view[group]).embedding_BD))
    return found


def both_ways(method, views):
    """Queries and keys of every view in eval mode, where groups make no difference."""
    everything = [range(len(views[0]))]
    queries = [rows_of(method.encoder, method.projector, v, everything) for v in views]
    return queries, [rows_of(*method.target, v, everything) for v in views]


def test_mocos_loss_scores_the_key_against_the_queue_as_it_was(make_moco):
    moco = make_moco(temperature=0.3).eval()
    before = moco.bank["key"]
    loss = moco(two_views(), at_step(0))["moco"]
    queries, keys = both_ways(moco, two_views())
    expected = info_nce_by_hand(queries[0], keys[1], before.double().numpy(), 0.3)
    assert loss.item() == pytest.approx(expected, abs=1e-4)


def test_mocos_keys_join_the_queue_after_scoring_oldest_first_out(make_moco):
    moco = make_moco(queue=12).eval()
    moco(two_views(), at_step(0))
    _, keys = both_ways(moco, two_views())
    assert moco.bank["key"][:8].numpy() == pytest.approx(keys[1], abs=1e-5)
    moco(two_views(2), at_step(1))
    _, later = both_ways(moco, two_views(2))
    expected = np.concatenate([later[1][4:], keys[1][4:8], later[1][:4]])
    assert moco.bank["key"].numpy() == pytest.approx(expected, abs=1e-5)
    assert moco.bank["key"].norm(dim=1).numpy() == pytest.approx(1, abs=1e-5)


def test_symmetric_moco_averages_both_directions_and_keeps_both_keys(make_moco):
    moco = make_moco(symmetric=True).eval()
    before = moco.bank["key"].double().numpy()
    loss = moco(two_views(), at_step(0))["moco"]
    queries, keys = both_ways(moco, two_views())
    expected = [info_nce_by_hand(queries[i], keys[1 - i], before, 0.2) for i in range(2)]
    assert loss.item() == pytest.approx(np.mean(expected), abs=1e-4)
    assert moco.bank["key"].numpy() == pytest.approx(np.concatenate(keys[::-1]), abs=1e-5)
    assert len(moco.last_embeddings) == 2


def test_mocos_groups_have_statistics_of_their_own_and_keys_other_groups(make_moco):
    """Queries in groups as they come, keys in groups drawn from the step, order restored."""
    moco = make_moco(projector=MoCoProjector(output_dim=5, batch_norm="hidden"))
    queue = moco.bank["key"].double().numpy()
    reference = copy.deepcopy(moco)
    loss = moco(two_views(), at_step(3))["moco"]
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3)).tolist()
    shuffled = [order[:4], order[4:]]
    assert {frozenset(group) for group in shuffled} != {frozenset(range(4)), frozenset(range(4, 8))}
    k_BP = rows_of(*reference.target, two_views()[1], shuffled)
    q_BP = rows_of(
        reference.encoder, reference.projector, two_views()[0], [[0, 1, 2, 3], [4, 5, 6, 7]]
    )
    assert moco.bank["key"][:8].numpy() == pytest.approx(k_BP, abs=1e-4)
    assert loss.item() == pytest.approx(info_nce_by_hand(q_BP, k_BP, queue, 0.2), abs=1e-3)
    whole = rows_of(*reference.target, two_views()[1], [list(range(8))])
    assert np.abs(whole - k_BP).max() > 0.01


def test_mocos_shuffle_depends_on_the_step_only(make_moco):
    def keys(step, seed):
        moco = make_moco()
        torch.manual_seed(seed)
        moco(two_views(), at_step(step))
        return moco.bank["key"][:8]

    assert torch.equal(keys(3, seed=1), keys(3, seed=2))
    assert not torch.allclose(keys(3, seed=1), keys(4, seed=1), atol=1e-3)


@pytest.mark.parametrize(("count", "sizes"), [(8, [2] * 4), (5, [3, 2]), (1, [1])])
def test_no_group_of_moco_has_a_single_image_where_there_are_more(make_moco, count, sizes):
    moco = make_moco(bn_splits=8)
    assert [len(part) for part in moco._groups(torch.zeros(count, 3))] == sizes


def test_moco_splits_no_batch_for_networks_without_batch_norm(make_moco):
    args = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
    vit = build_encoder(EncoderSettings(name="vit_tiny_patch16_224", args=args), 16)
    assert MoCo(vit, queue=8).bn_splits == 1
    normed = MoCoProjector(batch_norm="hidden")
    assert MoCo(vit, queue=8, projector=normed).bn_splits == 8
    assert make_moco(bn_splits=4).bn_splits == 4


def test_mocos_gradient_reaches_the_query_network_alone(make_moco):
    moco = make_moco()
    moco(two_views(), at_step(0))["moco"].backward()
    trained = [p for p in moco.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {
        id(p) for m in (moco.encoder, moco.projector) for p in m.parameters()
    }
    assert all(p.grad.abs().sum() > 0 for p in trained if p.ndim > 1)
    assert all(p.grad is None for p in moco.target.parameters())


def test_mocos_momentum_stays_unless_an_end_is_given(make_moco):
    def share(step, **settings):
        moco = make_moco(**settings)
        with torch.no_grad():
            moco.encoder.net.conv1.weight.fill_(1.0)
            moco.target[0].net.conv1.weight.fill_(0.0)
        moco.after_step(step, 10)
        return moco.target[0].net.conv1.weight.mean().item()

    assert share(0) == pytest.approx(1e-3, rel=1e-3)
    assert share(9) == pytest.approx(1e-3, rel=1e-3)
    assert share(5, momentum=0.9, momentum_end=1.0) == pytest.approx(0.05, rel=1e-3)


def test_mocos_projector_is_the_papers(make_encoder):
    moco = MoCo(make_encoder())
    assert [type(m).__name__ for m in moco.projector.layers] == ["Linear", "ReLU", "Linear"]
    linear = [m for m in moco.projector.layers if isinstance(m, nn.Linear)]
    assert [m.weight.shape for m in linear] == [(16, 16), (128, 16)]
    assert all(m.bias is not None for m in linear)
    assert moco.bank["key"].shape == (65536, 128) and moco.bn_splits == 8


def test_mocos_loss_falls(make_moco):
    moco = make_moco()
    optimizer = torch.optim.SGD([p for p in moco.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for step in range(8):
        moco.bank.pushed.zero_()
        moco.bank.key.copy_(torch.eye(5).repeat(4, 1)[:16])  # the same negatives at each step
        loss = moco(two_views(), at_step(0))["moco"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        moco.after_step(step, 8)
    assert losses[-1] < losses[0] - 0.1


def test_moco_in_bf16_gives_float32_losses_and_keys(make_moco):
    exact = make_moco()(two_views(), at_step(0))["moco"]
    moco = make_moco()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = moco(two_views(), at_step(0))["moco"]
    assert loss.dtype == moco.bank["key"].dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), abs=0.2)
    assert moco.bank["key"].norm(dim=1).numpy() == pytest.approx(1, abs=1e-5)


def test_moco_resumes_bit_by_bit(make_moco):
    moco, other = make_moco(), make_moco(seed=1)
    moco(two_views(), at_step(0))
    nn.init.ones_(moco.encoder.net.conv1.weight)
    moco.after_step(0, 10)
    other.load_state_dict(moco.state_dict())
    for step in (1, 2):
        ahead, again = (m(two_views(step), at_step(step))["moco"] for m in (moco, other))
        assert torch.equal(ahead, again)
    assert all(torch.equal(a, other.state_dict()[n]) for n, a in moco.state_dict().items())
