import pytest
import timm
import torch
from safetensors.torch import save_file

from ssdistill.artifacts.artifact import save_encoder
from ssdistill.errors import UserError
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.teachers.starting_weights import (
    start_from,
    starting_statistics,
    weights_identity,
)

SMALL = {
    "layers": [1, 1, 0, 0],
    "channels": [8, 8, 8, 8],
    "stem_type": "deep",
    "stem_width": 8,
}


OF_DATA = (0.1,) * 3, (0.2,) * 3


def small(mean=(0.5,) * 3, **args):
    settings = EncoderSettings(name="resnet10t", args=SMALL | args, stem="native")
    return build_encoder(settings, 16, mean, (0.25,) * len(mean))


def values(encoder):
    return {name: tensor.clone() for name, tensor in encoder.net.state_dict().items()}


def equal(one, two, names=None):
    return all(torch.equal(one[name], two[name]) for name in names or one)


def test_all_of_a_saved_model(tmp_path):
    trained, fresh = small(), small()
    sha256 = save_encoder(trained, tmp_path / "model")
    start = start_from(fresh, str(tmp_path))
    assert equal(values(fresh), values(trained))
    assert start.loaded == start.total == len(values(fresh))
    assert start.text("x") == f"{start.total} of {start.total} tensors start from x"
    assert weights_identity(str(tmp_path)) == {"sha256": sha256}
    assert starting_statistics(str(tmp_path), *OF_DATA) == ((0.5,) * 3, (0.25,) * 3)
    four = (0.1,) * 4, (0.2,) * 4
    assert starting_statistics(str(tmp_path), *four) == four
    assert starting_statistics(None, *OF_DATA) == OF_DATA


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: state,
        lambda state: {"state_dict": state},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"model": {f"backbone.{name}": t for name, t in state.items()}, "epoch": 3},
    ],
)
def test_a_state_dict_under_many_names(tmp_path, wrapped):
    trained, fresh = small(), small()
    torch.save(wrapped(values(trained)), tmp_path / "weights.pth")
    start = start_from(fresh, str(tmp_path / "weights.pth"))
    assert start.loaded == start.total and equal(values(fresh), values(trained))
    assert starting_statistics(str(tmp_path / "weights.pth"), *OF_DATA) == OF_DATA


def test_a_part_is_loaded_and_counted(tmp_path):
    trained, fresh = small(), small(channels=[8, 16, 8, 8])
    before = values(fresh)
    save_file(values(trained) | {"extra.weight": torch.ones(2)}, tmp_path / "w.safetensors")
    start = start_from(fresh, str(tmp_path / "w.safetensors"))
    after, source = values(fresh), values(trained)
    fits = [name for name in after if source[name].shape == after[name].shape]
    others = [name for name in after if source[name].shape != after[name].shape]
    assert len(others) > 0 and equal(after, source, fits) and equal(after, before, others)
    assert start.loaded == len(fits) and sorted(start.other_shapes) == sorted(others)
    assert start.ignored == ["extra.weight"] and start.missing == []
    said = start.text("w")
    assert f"{len(fits)} of {len(after)} tensors start from w" in said
    assert f"{len(others)} of another shape ({start.other_shapes[0]}, " in said
    assert "1 ignored (extra.weight)" in said


def test_what_is_missing_keeps_its_initialization(tmp_path):
    trained, fresh = small(), small()
    kept = {name: t for name, t in values(trained).items() if name.startswith("conv1")}
    before = values(fresh)
    save_file(kept, tmp_path / "w.safetensors")
    start = start_from(fresh, str(tmp_path / "w.safetensors"))
    rest = [name for name in before if name not in kept]
    assert equal(values(fresh), before, rest) and equal(values(fresh), values(trained), kept)
    assert set(start.missing) == {name for name in rest if "num_batches" not in name}


def test_a_first_layer_for_rgb_is_adapted_to_the_channels(tmp_path):
    save_encoder(small(), tmp_path / "model")
    fresh = small(mean=(0.5,) * 5)
    start = start_from(fresh, str(tmp_path / "model"))
    assert start.loaded == start.total and "adapted to 5 channels" in start.text("x")
    rgb = small()
    start_from(rgb, str(tmp_path / "model"))
    expected = timm.models.adapt_input_conv(5, rgb.net.state_dict()["conv1.0.weight"])
    assert torch.equal(fresh.net.state_dict()["conv1.0.weight"], expected)


def test_weights_of_timm(monkeypatch):
    trained, fresh = small(), small()
    monkeypatch.setattr(timm, "create_model", lambda name, **_: trained.net)
    assert start_from(fresh, "timm:resnet10t.c3_in1k").loaded == len(values(fresh))
    config = timm.get_pretrained_cfg("resnet10t.c3_in1k")
    assert weights_identity("timm:resnet10t.c3_in1k")["tag"] == "c3_in1k"
    seen = starting_statistics("timm:resnet10t.c3_in1k", *OF_DATA)
    assert seen == (tuple(config.mean), tuple(config.std))


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (None, "encoder.weights: "),
        (lambda p: torch.save({"other.weight": torch.ones(2)}, p), "none of the tensors of 'resn"),
        (lambda p: p.write_text("no weights"), "encoder.weights: "),
        (
            lambda p: torch.save({"conv1.0.weight": torch.ones(2, 3, 3, 3)}, p),
            "tensors of other shapes than 'resnet10t' (conv1.0.weight: (2, 3, 3, 3), not (8, 3",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path, write, said):
    path, encoder = tmp_path / "w.pth", small()
    before = values(encoder)
    if write:
        write(path)
    with pytest.raises(UserError) as refused:
        start_from(encoder, str(path))
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert equal(values(encoder), before)


def test_names_of_timm_that_do_not_exist():
    with pytest.raises(UserError, match=r"encoder\.weights: timm has no model 'resnet10x'"):
        start_from(small(), "timm:resnet10x")
    with pytest.raises(UserError, match=r"no pretrained weights for 'resnet10t.none'|did you mean"):
        weights_identity("timm:resnet10t.none")


def test_pretrained_and_weights_exclude_each_other():
    with pytest.raises(ValueError, match="both say where to start"):
        EncoderSettings(pretrained=True, weights="x")
    assert "weights" not in EncoderSettings().model_dump()
    assert EncoderSettings(weights="x").model_dump()["weights"] == "x"
