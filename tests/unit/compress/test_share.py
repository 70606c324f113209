import copy
import json
from types import SimpleNamespace

import pytest
import torch
from sklearn.cluster import KMeans
from torch import nn

from ssdistill.artifacts.artifact import load, load_weights, save_encoder, save_weights
from ssdistill.artifacts.coding.codes import Palette, Sparse
from ssdistill.compress import Context
from ssdistill.compress.codes.palettes import codebooks, nearest_index
from ssdistill.compress.share import Share
from ssdistill.compress.zeros import Zeros, zero_masks
from ssdistill.errors import UserError
from ssdistill.models.wrapped import Wrapped
from ssdistill.settings.registry import STEPS


def context(tmp_path):
    return Context(lambda n, seed: torch.zeros(0), tmp_path, progress=lambda items, title: items)


def shared_of(model, tmp_path, **settings):
    found = context(tmp_path)
    return Share(**settings).apply(model, found), found.record


def weights(model):
    return {key: p for key, p in model.net.named_parameters() if p.ndim > 1}


def error_of(values_N, book_K):
    index_N = nearest_index(values_N[None], book_K[None])[0].long()
    return float((book_K.double()[index_N] - values_N.double()).square().sum())


SAMPLES = {
    "normal": lambda g: torch.randn(3000, generator=g),
    "heavy tails": lambda g: torch.randn(3000, generator=g) ** 3,
    "two heaps": lambda g: torch.cat(
        [torch.randn(1500, generator=g) / 10 - 3, torch.randn(1500, generator=g) + 2]
    ),
}


@pytest.mark.parametrize("size", [2, 3, 8, 32, 200])
@pytest.mark.parametrize("name", SAMPLES)
def test_codebooks_are_no_worse_than_those_of_scikit_learn(name, size):
    values_N = SAMPLES[name](torch.Generator().manual_seed(0))
    book_K = codebooks(values_N[None], size)[0]
    assert book_K.shape == (size,) and (book_K.diff() >= 0).all()
    reference = KMeans(size, n_init=3, random_state=0).fit(values_N[:, None].numpy())
    assert error_of(values_N, book_K) <= 1.01 * reference.inertia_


def test_rows_have_their_own_codebooks_whatever_their_lengths():
    generator = torch.Generator().manual_seed(0)
    values_RN = torch.randn(5, 400, generator=generator) * torch.arange(1, 6)[:, None]
    counts_R = torch.tensor([400, 399, 50, 3, 1])
    books_RK = codebooks(values_RN, 4, counts_R)
    for values_N, count, book_K in zip(values_RN, counts_R, books_RK, strict=True):
        alone_K = codebooks(values_N[None, :count], 4)[0]
        assert error_of(values_N[:count], book_K) == pytest.approx(
            error_of(values_N[:count], alone_K), rel=0.01, abs=1e-12
        )


def test_few_different_numbers_are_met_exactly():
    values = torch.tensor([[0.1, 0.7, 0.1, -2.0, 0.7], [1.0, 1.0, 1.0, 1.0, 1.0]])
    books = codebooks(values, 3)
    assert books[0].tolist() == values[0].unique().tolist()
    assert books[1].tolist() == [1, 1, 1]
    index = nearest_index(values, books).long()
    assert torch.equal(books.gather(1, index), values)


@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_a_layer_of_k_numbers_is_reproduced_exactly(tmp_path, per):
    torch.manual_seed(0)
    numbers = torch.randn(8)
    net = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20))
    for layer in (net[0], net[2]):
        layer.weight.data = numbers[torch.randint(0, 8, layer.weight.shape)]
    model = Wrapped(net, torch.randn(2, 40))
    shared, record = shared_of(model, tmp_path, bits=3, per=per)
    assert all(torch.equal(shared.net.state_dict()[k], v) for k, v in net.state_dict().items())
    assert record["weight_error"] == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"bits": 8},
        {"bits": 4},
        {"bits": 2},
        {"clusters": 5},
        {"bits": 2, "per": "channel"},
        {"bits": 2, "per": "channel", "codebook": "float16"},
        {"bits": 4, "across": "shape"},
        {"bits": 4, "across": "all", "codebook": "float16"},
    ],
)
def test_files_shrink_and_come_back_exactly(make_encoder, tmp_path, settings):
    encoder = make_encoder().eval()
    before = copy.deepcopy(encoder.state_dict())
    shared, record = shared_of(encoder, tmp_path, **settings)
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())
    assert not encoder.coded
    save_encoder(encoder, tmp_path / "dense")
    save_encoder(shared, tmp_path / "shared")
    size = (tmp_path / "shared" / "model.coded.safetensors").stat().st_size
    assert size == record["bytes_entropy"] <= record["bytes_fixed"]
    assert size < 0.7 * (tmp_path / "dense" / "model.safetensors").stat().st_size
    assert record["speed"] == "unchanged: storage only"
    found = load(tmp_path / "shared")
    x_BCHW = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(found(x_BCHW).embedding_BD, shared(x_BCHW).embedding_BD)
    assert found.coded.keys() == shared.coded.keys()
    for key, code in shared.coded.items():
        assert isinstance(code, Palette) and torch.equal(code.decode(), weights(shared)[key])
        assert code.codebook.shape[-1] <= record["clusters"]


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_the_bytes_are_those_of_the_arithmetic(tmp_path, bits):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(300, 200), nn.ReLU(), nn.BatchNorm1d(200), nn.Linear(200, 60))
    _, record = shared_of(Wrapped(net, torch.randn(2, 300)), tmp_path, bits=bits)
    numbers = 300 * 200 + 200 * 60
    rest = 4 * (5 * 200 + 60) + 8  # biases, batch norm, its count of batches
    indices_and_books = numbers * bits / 8 + 2 * 4 * 2**bits
    header = 1200
    assert 0 < record["bytes_fixed"] - indices_and_books - rest < header
    least = numbers * record["index_entropy"] / 8 + 2 * 4 * 2**bits + rest
    assert least < record["bytes_entropy"] < 1.03 * least + header


def test_across_layers_there_is_one_codebook(make_encoder, tmp_path):
    shared, _ = shared_of(make_encoder(), tmp_path, bits=4, across="all")
    assert len({id(code.codebook) for code in shared.coded.values()}) == 1
    assert len(torch.cat([w.flatten() for w in weights(shared).values()]).unique()) <= 16
    by_shape, _ = shared_of(make_encoder(), tmp_path, bits=4, across="shape")
    shapes = {code.shape for code in by_shape.coded.values()}
    assert len({id(code.codebook) for code in by_shape.coded.values()}) == len(shapes)


def test_channels_come_closer_than_layers_do(make_encoder, tmp_path):
    encoder = make_encoder()
    by = {per: shared_of(encoder, tmp_path, bits=2, per=per)[1] for per in ("tensor", "channel")}
    assert by["channel"]["weight_error"] < by["tensor"]["weight_error"]


@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_zeros_stay_and_both_shrink_the_file(make_encoder, tmp_path, per):
    sparse = Zeros(sparsity=0.7).apply(make_encoder(), context(tmp_path))
    once = context(tmp_path)
    Zeros(sparsity=0.7).apply(make_encoder(), once)
    both, record = shared_of(sparse, tmp_path, bits=3, per=per)
    masks = zero_masks(both)
    assert masks.keys() == zero_masks(sparse).keys()
    for key, mask in masks.items():
        assert isinstance(both.coded[key], Sparse)
        assert not weights(both)[key][~mask].any()
        assert weights(both)[key][mask].unique().numel() > 1
    assert record["bytes_entropy"] < once.record["bytes_entropy"]
    save_encoder(both, tmp_path / "both")
    found = load(tmp_path / "both")
    state = both.net.state_dict()
    assert all(torch.equal(state[key], v) for key, v in found.net.state_dict().items())


def test_biases_norms_and_skipped_layers_stay(make_encoder, tmp_path):
    encoder = make_encoder()
    shared, _ = shared_of(encoder, tmp_path, bits=2, skip=("layer1.*",))
    for (key, old), new in zip(
        encoder.net.named_parameters(), shared.net.parameters(), strict=True
    ):
        if old.ndim == 1 or key.startswith("layer1."):
            assert torch.equal(old, new)
    assert not any(key.startswith("layer1.") for key in shared.coded)
    assert any(key.startswith("layer2.") for key in shared.coded)
    with pytest.raises(UserError, match=r"share\.skip: no layer matches 'layer9"):
        shared_of(encoder, tmp_path, skip=("layer9.*",))


def test_it_is_no_matter_of_chance(make_encoder, tmp_path):
    one, _ = shared_of(make_encoder(), tmp_path, bits=3)
    torch.manual_seed(7)
    other, _ = shared_of(make_encoder(), tmp_path, bits=3)
    assert save_encoder(one, tmp_path / "one") == save_encoder(other, tmp_path / "other")


def test_tied_layers_stay_tied_in_the_file(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(60, 60), nn.Linear(60, 60)
            self.two.weight = self.one.weight

        def forward(self, x_BD):
            return self.two(self.one(x_BD).relu())

    torch.manual_seed(0)
    model = Wrapped(Tied(), torch.randn(3, 60))
    shared, record = shared_of(model, tmp_path, bits=4)
    assert shared.net.one.weight is shared.net.two.weight
    assert record["bytes_fixed"] < 60 * 60 / 2 + 2 * 4 * 60 + 1000
    save_weights(shared, tmp_path / "tied")
    found = load_weights(model, tmp_path / "tied")
    assert torch.equal(found(model.inputs).embedding_BD, shared(model.inputs).embedding_BD)
    description = json.loads((tmp_path / "tied" / "model.json").read_text())
    assert description["weights"] == "model.coded.safetensors"


def test_rows_say_how_many_numbers():
    schema = STEPS.schema("share")
    assert Share.row(schema.model_validate({"kind": "share", "bits": 4})) == "shared_4_bits"
    settings = schema.model_validate({"kind": "share", "clusters": 12})
    assert Share.row(settings) == "shared_12_numbers"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bits": 9}, "share.size=512: must be between 2 and 256"),
        ({"clusters": 1}, "share.size=1: must be between 2 and 256"),
        ({"per": "channel", "across": "all"}, "per=channel"),
    ],
)
def test_wrong_settings_are_refused(settings, words):
    with pytest.raises(UserError, match=words) as caught:
        Share(**settings)
    assert "\n" not in str(caught.value)


def test_weights_that_are_no_numbers_are_refused_by_name(make_encoder, tmp_path):
    encoder = make_encoder()
    with torch.no_grad():
        encoder.net.layer1[0].conv1.weight[0, 0, 0, 0] = torch.inf
    with pytest.raises(UserError, match=r"layer1\.0\.conv1\.weight"):
        shared_of(encoder, tmp_path)


def test_what_would_not_get_shorter_is_left_alone(tmp_path):
    model = Wrapped(nn.Linear(4, 3), torch.randn(2, 4))
    with pytest.raises(
        UserError, match="no layer of 'Linear' becomes smaller with a codebook of 256 values"
    ):
        shared_of(model, tmp_path, bits=8, per="channel")


def test_a_file_for_a_runtime_is_refused(tmp_path):
    file = SimpleNamespace(path="model.onnx", runtime="onnxruntime")
    with pytest.raises(UserError, match=r"share cannot follow quantize or export: model\.onnx"):
        shared_of(file, tmp_path)
