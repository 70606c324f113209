import copy

import pytest
import torch
from torch import nn

from ssdistill.artifacts.artifact import load_encoder, save_encoder
from ssdistill.compress import Context
from ssdistill.compress.codes.fake_quant import weights_of
from ssdistill.compress.codes.mean_shifts import correct_shifts
from ssdistill.compress.lowbit import LowBit, TrainingOnGrid, put_on_grid
from ssdistill.compress.matching import match_embeddings
from ssdistill.errors import UserError
from ssdistill.label_free.agreement import centered_cosine
from ssdistill.measure.parameters import count_parameters
from ssdistill.models.wrapped import Wrapped
from ssdistill.settings.registry import STEPS


def images(n, seed=0):
    """Smooth random images: coarse noise, enlarged."""
    coarse_BCHW = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse_BCHW, 16, mode="bilinear")


def lowbit(model, tmp_path, inputs=images, **settings):
    context = Context(inputs, tmp_path, original=model, train=match_embeddings(images(128, 5)))
    return LowBit(**({"images": 128} | settings)).apply(model, context), context.record


def difference(a, b, inputs):
    with torch.no_grad():
        return 1 - centered_cosine(a(inputs).embedding_BD, b(inputs).embedding_BD).mean().item()


@pytest.fixture
def encoder(make_encoder):
    """One whose batch norms know the images."""
    encoder = make_encoder().train()
    with torch.no_grad():
        for seed in range(20):
            encoder(images(64, seed))
    return encoder.eval()


def mlp():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8))
    return Wrapped(net, torch.randn(4, 6), name="mlp").eval()


def vectors(n, seed=0):
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))


def test_the_registry_finds_the_step_and_its_settings():
    settings = STEPS.schema("lowbit")(bits=3, qat={"steps": 5})
    step = STEPS.build(settings)
    assert isinstance(step, LowBit) and step.bits == 3 and step.qat.steps == 5
    assert LowBit.row(settings) == "lowbit_3_trained"
    assert LowBit.row(STEPS.schema("lowbit")(bits={"*": 3})) == "lowbit"
    for wrong in (1, 9, {"*": 16}):
        with pytest.raises(ValueError, match="bits"):
            STEPS.schema("lowbit")(bits=wrong)


def test_every_weight_lies_on_its_grid_and_the_given_model_stays_as_it_was(encoder, tmp_path):
    before = copy.deepcopy(encoder.state_dict())
    made, record = lowbit(encoder, tmp_path, bits=3)
    assert all(torch.equal(tensor, before[key]) for key, tensor in encoder.state_dict().items())
    assert not encoder.coded and not encoder.training and not made.training
    layers = weights_of(made.net)
    assert set(made.coded) == set(layers) and record["weights"] == len(layers)
    for key, layer in layers.items():
        assert torch.equal(layer.weight, made.coded[key].decode())
        assert len(layer.weight[0].unique()) <= 8
    assert record["mean_bits"] == 3 and record["lowbit_cosine"] > 0.9
    assert count_parameters(made) == count_parameters(encoder)


def test_the_file_is_as_short_as_the_bits_say_and_loads_exactly(encoder, tmp_path):
    weights = sum(layer.weight.numel() for layer in weights_of(encoder.net).values())
    channels = sum(len(layer.weight) for layer in weights_of(encoder.net).values())
    rest = sum(t.nbytes for t in encoder.net.state_dict().values()) - 4 * weights
    for bits in (4, 8):
        made, _ = lowbit(encoder, tmp_path, bits=bits)
        folder = tmp_path / str(bits)
        save_encoder(made, folder)
        size = (folder / "model.coded.safetensors").stat().st_size
        header = 8000
        assert weights * bits * 0.5 / 8 < size <= weights * bits / 8 + 4 * channels + rest + header
        again = load_encoder(folder)
        for key, tensor in made.state_dict().items():
            assert torch.equal(again.state_dict()[key], tensor)
        assert set(again.coded) == set(made.coded)


def test_bits_by_pattern_take_the_first_match_and_leave_the_rest(encoder, tmp_path):
    made, record = lowbit(encoder, tmp_path, bits={"layer1.*conv2": 2, "layer1.*": 6})
    found = {key: code.bits for key, code in made.coded.items()}
    assert found["layer1.0.conv2.weight"] == 2 and found["layer1.0.conv1.weight"] == 6
    assert all(key.startswith("layer1.") for key in found)
    untouched = made.net.layer2[0].conv1.weight
    assert torch.equal(untouched, encoder.net.layer2[0].conv1.weight)
    assert 2 < record["mean_bits"] < 6


def test_the_first_and_the_last_layer_can_have_bits_of_their_own(encoder, tmp_path):
    made, _ = lowbit(encoder, tmp_path, bits=3, edges=7)
    bits = [made.coded[key].bits for key in weights_of(encoder.net)]
    assert bits == [7] + [3] * (len(bits) - 2) + [7]


def test_more_bits_are_closer_and_a_zero_point_helps(encoder, tmp_path):
    found = {
        (bits, symmetric): lowbit(encoder, tmp_path, bits=bits, symmetric=symmetric)[1]
        for bits in (2, 4, 8)
        for symmetric in (False, True)
    }
    away = {key: 1 - record["lowbit_cosine"] for key, record in found.items()}
    assert away[2, False] > 3 * away[4, False] > 9 * away[8, False]
    assert away[2, False] < away[2, True]


def test_the_correction_brings_two_bits_closer_on_images_it_has_not_seen(encoder):
    bits = dict.fromkeys(weights_of(encoder.net), 2)
    made = put_on_grid(encoder, bits, symmetric=True)
    state = copy.deepcopy(made.state_dict())
    corrected, better = correct_shifts(made, encoder, images(128))
    held_out = images(200, 9)
    assert better
    assert difference(corrected, encoder, held_out) < 0.8 * difference(made, encoder, held_out)
    assert all(torch.equal(tensor, state[key]) for key, tensor in made.state_dict().items())


def test_the_correction_restores_the_mean_of_every_layer():
    model = mlp()
    made = put_on_grid(model, dict.fromkeys(weights_of(model.net), 2))
    corrected, _ = correct_shifts(made, model, vectors(400))
    for name in ("net.0", "net.2", "net.4"):
        found = {}
        for which, one in (("before", model), ("made", made), ("corrected", corrected)):
            keep = lambda _, __, out, which=which, to=found: to.update({which: out.mean(0)})  # noqa: E731
            hook = one.get_submodule(name).register_forward_hook(keep)
            one(vectors(400)[:200])
            hook.remove()
        assert torch.allclose(found["corrected"], found["before"], atol=1e-5)
        assert not torch.allclose(found["made"], found["before"], atol=1e-2)


def test_a_correction_that_does_not_help_is_left_out(encoder):
    made, better = correct_shifts(encoder, encoder, images(64))
    assert made is encoder and not better
    assert correct_shifts(encoder, encoder, images(6)) == (encoder, False)


def test_training_on_the_grid_comes_closer_and_ends_on_it(tmp_path):
    model = mlp()
    train = match_embeddings(vectors(512, 3))
    context = Context(vectors, tmp_path, original=model, train=train)
    options = {"bits": 2, "images": 128, "symmetric": True, "bias_correction": False}
    plain = LowBit(**options).apply(model, context)
    qat = TrainingOnGrid(steps=200, batch_size=128, optim={"lr": 1e-2, "weight_decay": 0.0})
    trained = LowBit(**options, qat=qat).apply(model, context)
    held_out = vectors(300, 7)
    assert difference(trained, model, held_out) < 0.8 * difference(plain, model, held_out)
    assert set(trained.state_dict()) == set(model.state_dict())
    for key, layer in weights_of(trained.net).items():
        assert torch.equal(layer.weight, trained.coded[key].decode())
        assert all(len(row.unique()) <= 4 for row in layer.weight)


def test_tied_weights_are_coded_alike_under_both_keys(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    net[2].weight = net[0].weight
    model = Wrapped(net, torch.randn(4, 6))
    made, _ = lowbit(model, tmp_path, vectors, bits=3)
    assert set(made.coded) == {"0.weight", "2.weight"}
    assert made.net[2].weight is made.net[0].weight


def test_a_language_model_takes_low_bits(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=16,
    )  # fmt: skip
    tokens = torch.randint(0, 50, (64, 8), generator=torch.Generator().manual_seed(1))
    embed = lambda net, x: net(x).pooler_output  # noqa: E731
    model = Wrapped(transformers.BertModel(config).eval(), tokens, embed).eval()
    made, record = lowbit(
        model, tmp_path, lambda n, seed: tokens[:n], bits={"encoder.*": 4}, images=64
    )
    assert record["weights"] == 12 and all(key.startswith("encoder.") for key in made.coded)
    made, record = lowbit(model, tmp_path, lambda n, seed: tokens[:n], bits=6, images=64)
    assert "embeddings.word_embeddings.weight" in made.coded and record["lowbit_cosine"] > 0.99


def test_mistakes_are_named_in_one_line(encoder, tmp_path):
    def message(model, **settings):
        with pytest.raises(UserError) as caught:
            lowbit(model, tmp_path, **settings)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no layer matches 'layer7.*'" in message(encoder, bits={"layer7.*": 4})
    context = Context(images, tmp_path)
    with pytest.raises(UserError, match=r"lowbit\.qat requires a distill section"):
        LowBit(qat=TrainingOnGrid()).apply(encoder, context)
    broken = copy.deepcopy(encoder)
    broken.net.layer1[0].conv1.weight.data[0, 0, 0, 0] = float("nan")
    assert "lowbit: tensor 'layer1.0.conv1.weight'" in message(broken)
    bare = Wrapped(nn.BatchNorm1d(6), torch.randn(4, 6), name="bare")
    assert "'bare' has no convolution, linear or embedding layer" in message(bare)
