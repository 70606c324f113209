import copy
import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ssdistill.artifacts.artifact import load, load_weights, save_encoder, save_weights
from ssdistill.artifacts.coding.codes import Sparse
from ssdistill.compress import Context
from ssdistill.compress.codes.masks import mask_of_pattern, score, top
from ssdistill.compress.share import Share
from ssdistill.compress.zeros import Zeros, zero_masks
from ssdistill.errors import UserError
from ssdistill.models.wrapped import Wrapped
from ssdistill.settings.registry import STEPS


def context(tmp_path):
    return Context(lambda n, seed: torch.zeros(0), tmp_path, progress=lambda items, title: items)


def zeroed(model, tmp_path, **settings):
    found = context(tmp_path)
    return Zeros(**settings).apply(model, found), found.record


def weights(model):
    return [p for p in model.net.parameters() if p.ndim > 1]


def fraction_of_zeros(model):
    tensors = weights(model)
    return sum(int((w == 0).sum()) for w in tensors) / sum(w.numel() for w in tensors)


def file_bytes(folder):
    return (folder / json.loads((folder / "model.json").read_text())["weights"]).stat().st_size


@pytest.mark.parametrize("criterion", ["magnitude", "l1", "l2", "lamp"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_share_asked_for_is_zero_and_the_model_given_is_not(
    make_encoder, tmp_path, criterion, scope
):
    encoder = make_encoder()
    before = copy.deepcopy(encoder.state_dict())
    sparse, record = zeroed(encoder, tmp_path, sparsity=0.6, criterion=criterion, scope=scope)
    assert fraction_of_zeros(sparse) == pytest.approx(0.6, abs=0.01)
    assert record["sparsity"] == pytest.approx(0.6, abs=0.01)
    assert record["speed"] == "unchanged: storage only"
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())
    assert not encoder.coded and sparse.coded
    if scope == "layer":
        for weight in weights(sparse):
            assert (weight == 0).float().mean() == pytest.approx(0.6, abs=0.03)


def test_the_smallest_weights_go_and_the_others_stay(make_encoder, tmp_path):
    encoder = make_encoder()
    sparse, _ = zeroed(encoder, tmp_path, sparsity=0.5)
    pairs = list(zip(weights(encoder), weights(sparse), strict=True))
    gone = torch.cat([old[new == 0] for old, new in pairs]).abs().max()
    stay = torch.cat([old[new != 0] for old, new in pairs]).abs().min()
    assert gone <= stay
    assert all(torch.equal(old[new != 0], new[new != 0]) for old, new in pairs)


def test_scores_are_those_of_their_formulas():
    weight = torch.tensor([[3.0, -1.0], [0.0, 2.0]])
    assert score(weight, "magnitude").tolist() == [[3, 1], [0, 2]]
    assert torch.allclose(score(weight, "l1"), weight.abs().double() / 1.5)
    assert torch.allclose(score(weight, "l2"), weight.abs().double() / (14 / 4) ** 0.5)
    lamp = torch.tensor([[1.0, 1 / 14], [0.0, 4 / 13]], dtype=torch.double)
    assert torch.allclose(score(weight, "lamp"), lamp)
    assert top(weight.abs(), 0.5).tolist() == [[True, False], [False, True]]


def test_a_threshold_takes_what_is_below_it(make_encoder, tmp_path):
    sparse, _ = zeroed(make_encoder(), tmp_path, threshold=0.1)
    for weight in weights(sparse):
        assert not ((weight != 0) & (weight.abs() < 0.1)).any()


@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (1, 2), (3, 8)])
def test_every_group_along_the_inputs_keeps_its_largest(make_encoder, tmp_path, pattern):
    n, m = pattern
    encoder = make_encoder()
    sparse, record = zeroed(encoder, tmp_path, pattern=list(pattern))
    for old, new in zip(weights(encoder), weights(sparse), strict=True):
        rows_RI = new.flatten(2).transpose(1, 2).flatten(0, 1)
        for group, whole in zip(
            rows_RI.split(m, dim=1),
            old.flatten(2).transpose(1, 2).flatten(0, 1).split(m, dim=1),
            strict=True,
        ):
            expected = min(n, group.shape[1])
            assert ((group != 0).sum(1) == expected).all()
            best = whole.abs().topk(expected, dim=1).values.sum(1)
            assert torch.allclose(group.abs().sum(1), best)
    assert record["sparsity"] > 0


def test_a_pattern_of_a_linear_layer_is_along_its_inputs():
    weight = torch.tensor([[1.0, 4.0, 3.0, 2.0, 9.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    expected = [False, True, True, False, True]
    assert mask_of_pattern(weight, 2, 4)[0].tolist() == expected


def test_files_shrink_and_come_back_exactly(make_encoder, tmp_path):
    encoder = make_encoder().eval()
    save_encoder(encoder, tmp_path / "dense")
    sizes = {"dense": file_bytes(tmp_path / "dense")}
    x_BCHW = torch.rand(2, 3, 16, 16)
    for sparsity in (0.5, 0.9):
        folder = tmp_path / str(sparsity)
        sparse, record = zeroed(encoder, tmp_path, sparsity=sparsity)
        save_encoder(sparse, folder)
        sizes[sparsity] = file_bytes(folder)
        assert sizes[sparsity] == record["bytes_entropy"] <= record["bytes_fixed"]
        found = load(folder)
        with torch.no_grad():
            assert torch.equal(found(x_BCHW).embedding_BD, sparse(x_BCHW).embedding_BD)
        masks, again = zero_masks(sparse), zero_masks(found)
        assert masks.keys() == again.keys()
        assert all(torch.equal(masks[key], again[key]) for key in masks)
    weights_bytes = 4 * sum(w.numel() for w in weights(encoder))
    rest = sizes["dense"] - weights_bytes
    assert sizes[0.5] < rest + 0.56 * weights_bytes + 2000
    assert sizes[0.9] < rest + 0.13 * weights_bytes + 2000


def test_masks_say_where_weights_may_be_and_survive_what_keeps_the_zeros(make_encoder, tmp_path):
    sparse, _ = zeroed(make_encoder(), tmp_path, sparsity=0.5)
    for key, mask in zero_masks(sparse).items():
        weight = sparse.net.get_parameter(key)
        assert not weight[~mask].any() and weight[mask].all()
    trained = copy.deepcopy(sparse)
    with torch.no_grad():
        for parameter in trained.net.parameters():
            parameter.mul_(1.5)
    save_encoder(trained, tmp_path / "trained")
    save_encoder(make_encoder(), tmp_path / "dense")
    assert file_bytes(tmp_path / "trained") < 0.7 * file_bytes(tmp_path / "dense")
    assert zero_masks(load(tmp_path / "trained")).keys() == zero_masks(sparse).keys()
    trained.net.layer1[0].conv1 = nn.Conv2d(2, 2, 1)
    assert "layer1.0.conv1.weight" not in zero_masks(trained)


def test_more_zeros_contain_the_earlier_ones(make_encoder, tmp_path):
    half, _ = zeroed(make_encoder(), tmp_path, sparsity=0.5)
    more, _ = zeroed(half, tmp_path, sparsity=0.8)
    assert fraction_of_zeros(more) == pytest.approx(0.8, abs=0.01)
    for key, mask in zero_masks(more).items():
        assert not mask[half.net.get_parameter(key) == 0].any()


def test_a_codebook_from_before_is_kept(make_encoder, tmp_path):
    shared = Share(bits=3).apply(make_encoder(), context(tmp_path))
    sparse, record = zeroed(shared, tmp_path, sparsity=0.5)
    again, _ = zeroed(sparse, tmp_path, sparsity=0.7)
    for model in (sparse, again):
        codes = model.coded.values()
        assert all(code.index is not None for code in codes if isinstance(code, Sparse))
    assert record["bytes_entropy"] < record["bytes_fixed"]


def test_a_language_model_can_be_sparse_too(tmp_path):
    torch.manual_seed(0)
    embedding = nn.Embedding(30, 16)
    net = nn.Sequential(embedding, nn.Flatten(), nn.Linear(5 * 16, 8))
    model = Wrapped(net, torch.randint(0, 30, (4, 5)))
    sparse, _ = zeroed(model, tmp_path, sparsity=0.5)
    save_weights(sparse, tmp_path / "saved")
    found = load_weights(model, tmp_path / "saved")
    x_BT = model.example(3)
    assert torch.equal(found(x_BT).embedding_BD, sparse.eval()(x_BT).embedding_BD)
    assert not torch.equal(found(x_BT).embedding_BD, model.eval()(x_BT).embedding_BD)


def settings_of(**settings):
    return STEPS.schema("zeros").model_validate({"kind": "zeros", **settings})


def test_rounds_become_steps_with_training_between_them():
    steps = Zeros.expand(settings_of(sparsity=0.8, rounds=3, recover={"steps": 5}))
    assert [step.kind for step in steps] == ["zeros", "recover", "zeros", "recover", "zeros"]
    shares = [step.sparsity for step in steps[::2]]
    assert shares == pytest.approx([0.8 * (1 - (2 / 3) ** 3), 0.8 * (1 - (1 / 3) ** 3), 0.8])
    assert steps[1].steps == 5 and steps[-1].rounds == 1
    linear = settings_of(sparsity=0.8, rounds=2, schedule="linear", recover={"steps": 5})
    assert [step.sparsity for step in Zeros.expand(linear)[::2]] == pytest.approx([0.4, 0.8])
    one = settings_of(sparsity=0.8)
    assert Zeros.expand(one) == [one]


def test_rows_say_how_many():
    assert Zeros.row(settings_of(sparsity=0.9)) == "zeroed_90"
    assert Zeros.row(settings_of(pattern=[2, 4])) == "zeroed_2of4"
    assert Zeros.row(settings_of(threshold=0.01)) == "zeroed_below_0.01"


@pytest.mark.parametrize(
    "settings",
    [
        {"pattern": [2, 4], "rounds": 2, "recover": {}},
        {"sparsity": 0.5, "rounds": 2},
        {"sparsity": 0.5, "recover": {}},
        {"sparsity": 0.5, "rounds": 2, "recover": {"stepz": 3}},
    ],
)
def test_rounds_that_mean_nothing_are_refused(settings):
    with pytest.raises(UserError, match="zeros") as caught:
        Zeros.expand(settings_of(**settings))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "exactly one of sparsity, threshold and pattern .none is set"),
        ({"sparsity": 0.5, "threshold": 1.0}, "sparsity=0.5 and threshold=1 are set"),
        ({"sparsity": 1.2}, "zeros.sparsity=1.2"),
        ({"pattern": [3, 2]}, r"zeros.pattern=\[3, 2\]"),
        ({"pattern": [2, 2]}, r"zeros.pattern=\[2, 2\]"),
        ({"sparsity": 0.5, "rounds": 3}, "rounds"),
    ],
)
def test_wrong_settings_are_refused(settings, words):
    with pytest.raises(UserError, match=words) as caught:
        Zeros(**settings)
    assert "\n" not in str(caught.value)


def test_weights_that_are_no_numbers_are_refused_by_name(make_encoder, tmp_path):
    encoder = make_encoder()
    with torch.no_grad():
        encoder.net.layer1[0].conv1.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match=r"layer1\.0\.conv1\.weight"):
        zeroed(encoder, tmp_path, sparsity=0.5)


def test_a_layer_of_which_nothing_would_be_left_is_named(make_encoder, tmp_path):
    encoder = make_encoder()
    with torch.no_grad():
        encoder.net.layer1[0].conv1.weight.mul_(1e-6)
    with pytest.raises(
        UserError, match=r"'layer1\.0\.conv1\.weight' of 'resnet10t' would lose all its weights"
    ):
        zeroed(encoder, tmp_path, sparsity=0.5)
    sparse, _ = zeroed(encoder, tmp_path, sparsity=0.5, criterion="lamp")
    assert sparse.net.layer1[0].conv1.weight.any()


def test_nothing_to_zero_is_refused(make_encoder, tmp_path):
    with pytest.raises(UserError, match="no weight of 'resnet10t' would become zero"):
        zeroed(make_encoder(), tmp_path, threshold=1e-30)


def test_a_file_for_a_runtime_is_refused(tmp_path):
    file = SimpleNamespace(path="model.onnx", runtime="onnxruntime")
    with pytest.raises(UserError, match=r"zeros cannot follow quantize or export: model\.onnx"):
        zeroed(file, tmp_path, sparsity=0.5)
