"""What every file for a runtime does with its inputs, whichever runtime it is."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ssdistill.artifacts.runtimes import Runtime, RuntimeModel, check
from ssdistill.artifacts.runtimes.tracing import ready, torch_threads
from ssdistill.errors import UserError
from ssdistill.models.spec import EncoderSpec

SPEC = EncoderSpec(name="tiny", image_size=4, mean=(0.5,) * 3, std=(0.5,) * 3)


class Firsts(RuntimeModel):
    """A file of its own kind: the embedding are the first two numbers of an input."""

    runtime = "firsts"
    input_dtype = np.dtype("float32")
    given = None

    def _open(self, threads):
        self.opened = [*getattr(self, "opened", ()), threads]

    def _run(self, inputs):
        self.given = inputs
        return inputs.reshape(len(inputs), -1)[:, :2].astype("float32")

    @classmethod
    def version(cls):
        return "firsts 1"


@pytest.fixture
def make(tmp_path):
    """``make(dtype, shape, spec)``: such a file."""

    def make(dtype="float32", shape=None, spec=SPEC):
        (tmp_path / "model.firsts").write_text("x")
        model = Firsts(tmp_path / "model.firsts", 2, spec)
        model.input_dtype, model.input_shape = np.dtype(dtype), shape
        return model

    return make


def images(side=4, count=2):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_floats_are_given_as_they_are_and_bytes_scaled(make):
    model, x_BCHW = make(), images()
    model(x_BCHW.double())
    assert model.given.dtype == np.float32 and np.array_equal(model.given, x_BCHW.numpy())
    model((x_BCHW * 255).byte())
    assert np.array_equal(model.given, ((x_BCHW * 255).byte() / 255).numpy())


def test_a_file_of_bytes_is_given_rounded_ones_or_the_very_same(make):
    model, x_BCHW = make("uint8"), images()
    model(x_BCHW)
    assert np.array_equal(model.given, (x_BCHW * 255).round().byte().numpy())
    model((x_BCHW * 255).byte())
    assert np.array_equal(model.given, (x_BCHW * 255).byte().numpy())


def test_a_file_of_bytes_is_given_the_size_it_takes_where_images_have_another(make):
    model, x_BCHW = make("uint8", (3, 6, 6)), images(4)
    model(x_BCHW)
    wanted = F.interpolate(x_BCHW, (6, 6), mode="bicubic", antialias=True)
    # Bicubic overshoots: what is beyond black and white is cut off.
    assert float(wanted.min()) < 0 or float(wanted.max()) > 1
    assert np.array_equal(model.given, (wanted * 255).round().clamp(0, 255).byte().numpy())
    model(images(6))
    assert np.array_equal(model.given, (images(6) * 255).round().byte().numpy())


def test_other_sizes_than_the_files_are_refused(make):
    with pytest.raises(UserError, match=r"takes inputs of shape \(3, 6, 6\), got \(3, 4, 4\)"):
        make("float32", (3, 6, 6))(images(4))
    with pytest.raises(UserError, match=r"takes inputs of shape \(3, 6, 6\), got \(3, 4, 4\)"):
        make("uint8", (3, 6, 6))((images(4) * 255).byte())
    make("float32", (3, None, None))(images(4))


def test_a_file_of_integers_takes_no_floats_and_no_images(make):
    model = make("int64", spec=None)
    model(torch.tensor([[1, 2], [3, 4]], dtype=torch.int32))
    assert model.given.dtype == np.int64 and model.given.tolist() == [[1, 2], [3, 4]]
    with pytest.raises(UserError, match=r"takes int64, got torch\.float32"):
        model(torch.rand(2, 2))


def test_bytes_are_no_images_for_a_file_of_another_module(make):
    model = make(spec=None)
    model(torch.tensor([[1, 255]], dtype=torch.uint8))
    assert model.given.tolist() == [[1.0, 255.0]]


def test_values_are_looked_at_where_that_is_asked_for_alone(make):
    model = make()
    model(images() * 5)
    model.checks_inputs = True
    with pytest.raises(UserError, match="divide by 255"):
        model(images() * 5)
    model((images() * 255).byte())


def test_no_inputs_give_no_embeddings_without_a_run(make):
    model = make()
    assert model(images(count=0)).embedding_BD.shape == (0, 2) and model.given is None


@pytest.mark.parametrize("shape", [(2, 3, 1), (2,), (3, 2), (1, 4)])
def test_an_output_that_is_no_embedding_of_each_input_is_refused(make, monkeypatch, shape):
    model = make()
    monkeypatch.setattr(model, "_run", lambda inputs: np.zeros(shape, "float32"))
    with pytest.raises(UserError, match="for 2 inputs, expected embeddings"):
        model(images())


def test_an_error_of_the_runtime_is_one_line_with_the_shape_and_ours_is_left_alone(
    make, monkeypatch
):
    def fails(error):
        def run(inputs):
            raise error

        return run

    model = make()
    monkeypatch.setattr(model, "_run", fails(KeyError("axis\nof a kernel")))
    with pytest.raises(UserError, match=r"firsts cannot run inputs of shape \(2, 3,") as said:
        model(images())
    assert "\n" not in str(said.value) and str(model.path) in str(said.value)
    monkeypatch.setattr(model, "_run", fails(UserError("ours")))
    with pytest.raises(UserError, match=r"^ours$"):
        model(images())


def test_a_file_cannot_be_trained_and_is_called_by_its_encoder_or_itself(make):
    model = make()
    assert model.eval() is model.train(False) is model.to("cpu") is model
    with pytest.raises(UserError, match="is a file for firsts and cannot be trained"):
        model.train()
    assert (model.name, make(spec=None).name) == ("tiny", "model")


def test_other_threads_open_the_file_again(make):
    model = make()
    assert (model.session_threads, model.opened) == (0, [0])
    model.session_threads = 3
    assert (model.session_threads, model.opened) == (3, [0, 3])


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path / 'x.firsts'}: no such file or folder"):
        Firsts(tmp_path / "x.firsts", 2)


class Off:
    """What was written: what the encoder says, and ``by`` more in one place."""

    def __init__(self, encoder, by):
        self.encoder, self.by = encoder, by

    def __call__(self, x_BCHW):
        found = self.encoder(x_BCHW)
        found.embedding_BD[1, 1] += self.by
        return found

    @staticmethod
    def version():
        return "off 1"


def test_a_file_may_differ_by_a_fraction_of_the_largest_value_or_of_one(make_encoder):
    encoder = make_encoder().eval()
    largest = max(1.0, float(encoder(encoder.example(3)).embedding_BD.abs().max()))
    assert check(encoder, Off(encoder, 0.9e-3 * largest)) == pytest.approx(0.9e-3 * largest, 1e-3)
    for by in (1.1e-3 * largest, -1.1e-3 * largest, float("nan")):
        with pytest.raises(UserError, match=r"off 1 differs from PyTorch on 'resnet10t' by"):
            check(encoder, Off(encoder, by))
    assert check(encoder, Off(encoder, 0.4 * largest), tolerance=0.5) > 0.3


def test_a_runtime_that_is_missing_names_the_extra_that_brings_it():
    class Missing(Runtime):
        kind, module, extra = "missing", "no_such_module_at_all", "gone"

    with pytest.raises(UserError, match=r"requires no_such_.*: pip install 'ssdistill\[gone\]'$"):
        Missing.require()
    Missing.extra = None
    with pytest.raises(UserError, match=r"missing requires no_such_module_at_all \([^)]*\)$"):
        Missing.require()


def test_a_copy_made_ready_is_frozen_and_the_model_is_left_as_it_was(make_encoder):
    encoder = make_encoder().train()
    encoder.set_taps(("layer1",))
    encoder.to(memory_format=torch.channels_last)
    copy = ready(encoder)
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    assert not any(module.training for module in copy.modules())
    assert copy.taps == () and copy.checks_inputs is False
    assert all(parameter.is_contiguous() for parameter in copy.parameters())
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    assert encoder.training and encoder.taps == ("layer1",)


@pytest.mark.parametrize(("count", "inside"), [(0, 1), (1, 1), (2, 2)])
def test_threads_are_those_asked_for_inside_and_the_same_again_after(count, inside):
    assert torch.get_num_threads() == 1
    with pytest.raises(ZeroDivisionError), torch_threads(count):
        assert torch.get_num_threads() == inside
        _ = 1 / 0
    assert torch.get_num_threads() == 1


def test_a_file_of_any_size_says_how_many_channels_it_takes(make):
    model = make("uint8", (1, None, None), spec=None)
    with pytest.raises(
        UserError, match=r"takes inputs of shape \(1, None, None\), got \(3, 4, 4\)"
    ):
        model(torch.rand(2, 3, 4, 4))
