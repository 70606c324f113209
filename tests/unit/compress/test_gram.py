import pytest
import torch
from torch import nn

from ssdistill.compress.fitting import gram
from ssdistill.compress.fitting.arguments import ConvArguments
from ssdistill.compress.fitting.gram import Gram, best_map


def samples(count=200, groups=1, width=6, outputs=4, noise=0.1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x_NGK = 3 + torch.randn(count, groups, width, generator=generator).double()
    map_GKO = torch.randn(groups, width, outputs, generator=torch.Generator().manual_seed(9))
    y_NGO = torch.einsum("ngk,gko->ngo", x_NGK, map_GKO.double()) - 2
    return x_NGK, y_NGO + noise * torch.randn(y_NGO.shape, generator=generator), map_GKO


def gram_of(x_NGK, y_NGO, batch=1000):
    gram = Gram()
    for x, y in zip(x_NGK.split(batch), y_NGO.split(batch), strict=True):
        gram.add(x, y)
    return gram


def test_batch_by_batch_it_finds_the_one_shot_least_squares_solution():
    x_NGK, y_NGO, _ = samples()
    map_GKO, bias_GO = gram_of(x_NGK, y_NGO, 7).solve(torch.zeros(1))
    design = torch.cat([x_NGK[:, 0], torch.ones(len(x_NGK), 1)], 1)
    expected = torch.linalg.lstsq(design, y_NGO[:, 0]).solution
    assert torch.allclose(map_GKO[0], expected[:-1], atol=1e-9)
    assert torch.allclose(bias_GO[0], expected[-1], atol=1e-9)


def test_the_ridge_is_in_units_of_the_mean_variance_and_spares_the_bias():
    x_NGK, y_NGO, _ = samples()
    map_GKO, bias_GO = gram_of(x_NGK, y_NGO).solve(torch.tensor([0.5]))
    x, y = x_NGK[:, 0] - x_NGK[:, 0].mean(0), y_NGO[:, 0] - y_NGO[:, 0].mean(0)
    penalty = 0.5 * x.var(0, correction=0).mean() * torch.eye(6)
    expected = torch.linalg.solve(x.T @ x / len(x) + penalty, x.T @ y / len(x))
    assert torch.allclose(map_GKO[0], expected, atol=1e-9)
    assert torch.allclose(bias_GO[0], (y_NGO[:, 0] - x_NGK[:, 0] @ expected).mean(0), atol=1e-9)


def test_each_group_is_a_regression_of_its_own():
    x_NGK, y_NGO, _ = samples(groups=3)
    together, _ = gram_of(x_NGK, y_NGO).solve(torch.tensor([0.1, 0.2, 0.3]))
    for i, ridge in enumerate((0.1, 0.2, 0.3)):
        alone, _ = gram_of(x_NGK[:, [i]], y_NGO[:, [i]]).solve(torch.tensor([ridge]))
        assert torch.allclose(together[i], alone[0])


def test_the_error_comes_from_the_sums_alone():
    x_NGK, y_NGO, map_GKO = samples(noise=1.0)
    gram, bias_GO = gram_of(x_NGK, y_NGO), torch.full((1, 4), 0.3).double()
    found = gram.error(map_GKO.double(), bias_GO)
    direct = torch.einsum("ngk,gko->ngo", x_NGK, map_GKO.double()) + bias_GO - y_NGO
    assert torch.allclose(found, direct.square().mean(0))


def test_merging_is_seeing_both():
    x_NGK, y_NGO, _ = samples()
    one = gram_of(x_NGK[:120], y_NGO[:120])
    one.merge(gram_of(x_NGK[120:], y_NGO[120:]))
    both = gram_of(x_NGK, y_NGO)
    assert one.count == both.count and torch.allclose(one.xx_GKK, both.xx_GKK)
    assert torch.allclose(one.solve(torch.ones(1))[0], both.solve(torch.ones(1))[0])


def test_memory_does_not_grow_with_the_samples():
    gram = Gram()
    for _ in range(5):
        gram.add(torch.randn(30, 2, 3), torch.randn(30, 2, 4))
    kept = sum(t.numel() for t in vars(gram).values() if isinstance(t, torch.Tensor))
    assert kept == 2 * (3 + 4 + 3 * 3 + 3 * 4 + 4)


def test_inputs_that_say_nothing_have_no_solution_and_change_nothing():
    gram = Gram()
    gram.add(torch.ones(10, 1, 3), torch.randn(10, 1, 2))
    assert gram.solve(torch.zeros(1)) is None
    held = gram_of(torch.ones(10, 1, 3), torch.randn(10, 1, 2))
    map_GKO, bias_GO, left = best_map(gram, held, (0.1,), torch.ones(1, 2))
    assert not map_GKO.any() and not bias_GO.any() and left == 1


def choose(fitted, held, ridges, weight=1.0):
    weight_GO = torch.full((1, fitted[1].shape[2]), weight)
    return best_map(gram_of(*fitted), gram_of(*held), ridges, weight_GO)


def test_held_out_samples_choose_the_ridge():
    # Twelve samples of a dozen inputs: without a penalty the noise is fitted as well.
    fitted = samples(count=14, width=12, noise=3.0)[:2]
    held = samples(count=500, width=12, noise=3.0, seed=1)[:2]
    lefts = {r: choose(fitted, held, (r,))[2] for r in (1e-8, 1e-3, 0.1, 1.0)}
    best = min(lefts, key=lefts.get)
    assert best > 1e-8 and choose(fitted, held, tuple(lefts))[2] == lefts[best]


def test_no_map_is_taken_that_makes_held_out_samples_worse():
    x_NGK, y_NGO, _ = samples()
    map_GKO, bias_GO, left = choose((x_NGK, y_NGO), (x_NGK, -y_NGO), (1e-6, 1e-2, 1.0))
    assert not map_GKO.any() and not bias_GO.any() and left == 1


def test_the_final_map_is_fitted_to_the_held_out_samples_too():
    x_NGK, y_NGO, _ = samples()
    map_GKO, *_ = choose((x_NGK[:150], y_NGO[:150]), (x_NGK[150:], y_NGO[150:]), (1e-4,))
    everything, _ = gram_of(x_NGK, y_NGO).solve(torch.tensor([1e-4]))
    assert torch.allclose(map_GKO, everything)


def test_groups_that_gain_nothing_stay_as_they_are():
    x_NGK, y_NGO, _ = samples(groups=2)
    worse_NGO = torch.stack([y_NGO[:, 0], -y_NGO[:, 1]], 1)
    found = best_map(
        gram_of(x_NGK, y_NGO), gram_of(x_NGK, worse_NGO), (1e-4, 1e-2), torch.ones(2, 4)
    )
    map_GKO, bias_GO, left = found
    assert map_GKO[0].any() and not map_GKO[1].any() and not bias_GO[1].any() and left < 1


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, (5, 3), stride=(2, 1), padding=(2, 0), dilation=(1, 2)),
        nn.Conv2d(4, 6, 1, stride=2),
        nn.Conv2d(4, 6, 4, padding="same", dilation=2),
        nn.Conv2d(4, 6, 3, padding="valid"),
        nn.Conv2d(4, 8, 3, groups=2, padding=1),
        nn.Conv2d(4, 8, 3, groups=4, padding=1, stride=2),
    ],
)
@torch.no_grad()
def test_samples_times_the_weight_are_the_convolution(layer):
    x_BCHW = torch.randn(3, 4, 9, 11)
    arguments = ConvArguments(
        x_BCHW,
        layer.weight,
        layer.bias,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
    )
    y_BOHW = layer(x_BCHW)
    places_P = torch.tensor([0, 3, 7])
    seen_NGK = arguments.samples(y_BOHW, places_P)
    weight_GOK = layer.weight.flatten(1).unflatten(0, (layer.groups, -1))
    found_NO = torch.einsum("ngk,gok->ngo", seen_NGK, weight_GOK).flatten(1) + layer.bias
    expected_BPO = y_BOHW.flatten(2)[:, :, places_P].transpose(1, 2)
    assert torch.allclose(found_NO, expected_BPO.flatten(0, 1), atol=1e-5)
    assert len(arguments.samples(y_BOHW, None)) == 3 * y_BOHW[0, 0].numel()


def test_weaker_ridges_are_not_tried_once_several_in_a_row_helped_none(monkeypatch):
    x_NGK, y_NGO, _ = samples(count=20, noise=30.0)
    fitted, held_out = gram_of(x_NGK, y_NGO), gram_of(*samples(count=50, noise=30.0, seed=1)[:2])
    tried, solve = [], Gram.solve

    def note(self, ridge_G):
        tried.append(float(ridge_G[0]))
        return solve(self, ridge_G)

    monkeypatch.setattr(Gram, "solve", note)
    ridges = [10.0**-power for power in range(12)]
    best_map(fitted, held_out, ridges, torch.ones(1, 4))
    *tried, chosen = tried
    assert tried == ridges[: len(tried)] and chosen in tried
    assert len(tried) == ridges.index(chosen) + 1 + gram.PATIENCE < len(ridges)
