"""What every registered runtime must do; a new one is tested without being named."""

import copy

import pytest
import torch
from torch import nn

from ssdistill.artifacts.runtimes import RuntimeModel, check
from ssdistill.compress.export import Uint8Encoder
from ssdistill.errors import UserError
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.models.factorized import Factorized
from ssdistill.models.representation import Representation
from ssdistill.models.wrapped import Wrapped
from ssdistill.settings.registry import RUNTIMES

SMALL = {"layers": (1, 1, 0, 0), "channels": (8, 16, 16, 16), "stem_type": "deep",
         "stem_width": 8, "zero_init_last": False}  # fmt: skip
ALL = sorted(RUNTIMES.classes)
QUICK = [kind for kind in ALL if not RUNTIMES[kind].compiles]


def small_encoder():
    torch.manual_seed(0)
    settings = EncoderSettings(name="resnet10t", args=SMALL, stem_stride=2)
    return build_encoder(settings, 16, (0.4, 0.5, 0.6), (0.2, 0.3, 0.2)).eval()


def runtime_or_skip(kind):
    try:
        RUNTIMES[kind].require()
    except UserError as error:
        pytest.skip(str(error))
    return RUNTIMES[kind]


def write(kind, model, folder):
    runtime = runtime_or_skip(kind)
    runtime().write(model, folder / runtime.file)
    return runtime.opens(folder / runtime.file, model.embed_dim, getattr(model, "spec", None))


@pytest.fixture(scope="module", params=ALL)
def written(request, tmp_path_factory):
    encoder = small_encoder()
    encoder.train()
    encoder.net.bn1.eval()
    encoder.set_taps(("layer1",))
    found = write(request.param, encoder, tmp_path_factory.mktemp(request.param))
    left = (encoder.training, encoder.net.bn1.training, encoder.taps)
    return found, encoder, left


@torch.no_grad()
def test_a_file_agrees_with_the_model_at_any_batch_size_and_leaves_it_alone(written):
    found, encoder, left = written
    assert left == (True, False, ("layer1",))
    assert all(p.requires_grad and p.grad is None for p in encoder.net.parameters())
    twin = copy.deepcopy(encoder).eval()
    for batch in (1, 3, 64, 67):
        x_BCHW = torch.rand(batch, 3, 16, 16)
        embedding_BD = found(x_BCHW).embedding_BD
        assert torch.allclose(embedding_BD, twin(x_BCHW).embedding_BD, atol=1e-4)
        again_BD = found(torch.rand(batch, 3, 16, 16)).embedding_BD
        assert not torch.equal(again_BD, embedding_BD)
    assert found(torch.rand(0, 3, 16, 16)).embedding_BD.shape == (0, 16)
    channels_last = x_BCHW.contiguous(memory_format=torch.channels_last)
    assert torch.equal(found(channels_last).embedding_BD, found(x_BCHW).embedding_BD)


def test_a_file_says_what_it_is_and_takes_a_number_of_threads(written, monkeypatch):
    found, _, _ = written
    assert isinstance(found, RuntimeModel) and RUNTIMES[found.runtime].opens is type(found)
    assert found.version() and found.input_dtype == "float32" and found.name == "resnet10t"
    x_BCHW, before = torch.rand(4, 3, 16, 16), torch.get_num_threads()
    expected_BD = found(x_BCHW).embedding_BD
    for threads in (2, 1, 0):
        found.session_threads = threads
        running = threads_while_running(found, x_BCHW, monkeypatch)
        # 0 leaves the choice to the runtime; OpenVINO and XNNPACK then say what it is.
        assert running == threads if threads else running >= 0
        assert torch.allclose(found(x_BCHW).embedding_BD, expected_BD, atol=1e-5)
        assert found.session_threads == threads and torch.get_num_threads() == before
    assert found.eval() is found and found.to("cpu") is found and found.train(False) is found
    with pytest.raises(UserError, match="cannot be trained"):
        found.train()


def threads_while_running(found, x, monkeypatch):
    """How many threads a file runs ``x`` with, according to its runtime."""
    if found.runtime == "onnxruntime":
        return found.session.get_session_options().intra_op_num_threads
    if found.runtime == "openvino":
        return found._compiled.get_property("INFERENCE_NUM_THREADS")
    if found.runtime == "executorch":
        from executorch.extension.pybindings import portable_lib

        found(x)
        return portable_lib._threadpool_get_thread_count()
    name = {"torch_export": "module", "aot_inductor": "package"}[found.runtime]
    seen, program = [], getattr(found, name)

    def note(inputs):
        seen.append(torch.get_num_threads())
        return program(inputs)

    with monkeypatch.context() as patch:
        patch.setattr(found, name, note)
        found(x)
    return seen[-1]


def test_a_file_that_answers_nan_is_refused():
    encoder = small_encoder()

    class Broken:
        def __call__(self, x):
            embedding_BD = encoder(x).embedding_BD.clone()
            embedding_BD[1, 2] = float("nan")
            return Representation(embedding_BD)

        def version(self):
            return "broken 1.0"

    with pytest.raises(UserError, match=r"1\.0 differs from PyTorch on 'resnet10t' by nan"):
        check(encoder, Broken())


class Constant(nn.Module):
    """Says (largest, 0) of everything."""

    def __init__(self, largest):
        super().__init__()
        self.layer = nn.Linear(1, 2)
        nn.init.zeros_(self.layer.weight)
        with torch.no_grad():
            self.layer.bias.copy_(torch.tensor([largest, 0.0]))

    def forward(self, x_B1):
        return self.layer(x_B1)


@pytest.mark.parametrize(("largest", "unit"), [(0.1, 1.0), (1.0, 1.0), (100.0, 100.0)])
def test_a_difference_is_tolerated_in_units_of_the_largest_number_if_that_is_above_one(
    largest, unit
):
    model = Wrapped(Constant(largest).eval(), torch.zeros(4, 1))

    class Off:
        def __init__(self, difference):
            self.difference = difference

        def __call__(self, x):
            return Representation(model(x).embedding_BD - self.difference)

        def version(self):
            return "off 1.0"

    assert check(model, Off(0.09 * unit), 0.1) == pytest.approx(0.09 * unit, rel=1e-4)
    with pytest.raises(UserError, match="differs from PyTorch"):
        check(model, Off(0.11 * unit), 0.1)


def test_files_that_are_none_are_refused_in_one_line(written, tmp_path):
    found, encoder, _ = written
    content = found.path.read_bytes()
    cut = len(content) // 2
    for number, damaged in enumerate((b"", b"nonsense" * 99, content[:cut])):
        path = tmp_path / f"{number}_{found.path.name}"
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=path.name) as caught:
            type(found)(path, encoder.embed_dim, encoder.spec)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no such file or folder"):
        type(found)(tmp_path / "absent", encoder.embed_dim)
    with pytest.raises(UserError, match="no such file or folder"):
        type(found)(tmp_path, encoder.embed_dim)


def test_a_file_that_is_another_model_is_noticed(written):
    found, encoder, _ = written
    other = copy.deepcopy(encoder)
    nn.init.constant_(other.net.conv1.weight, 0.1)
    with pytest.raises(UserError, match="differs from PyTorch on 'resnet10t'"):
        check(other, found)


@pytest.mark.parametrize("kind", QUICK)
@torch.no_grad()
def test_uint8_pictures_of_another_size_through_pruned_and_factorized_layers(kind, tmp_path):
    encoder = small_encoder()
    first, second = encoder.net.layer1[0], encoder.net.layer2[0]
    first.conv1 = nn.Conv2d(first.conv1.in_channels, 5, 3, padding=1, bias=False)
    first.bn1 = nn.BatchNorm2d(5)
    first.conv2 = nn.Conv2d(5, 8, 3, padding=1, bias=False)
    second.conv1 = Factorized.like(second.conv1, 3, "spatial")
    second.conv2 = Factorized.like(second.conv2, (3, 4), "tucker")
    for parameter in (*second.conv1.parameters(), *second.conv2.parameters()):
        nn.init.normal_(parameter, std=0.3)
    source = Uint8Encoder(encoder.eval(), 24)
    found = write(kind, source, tmp_path)
    images_BCHW = source.example(5)
    expected_BD = source(images_BCHW).embedding_BD
    assert found.input_dtype == "uint8"
    assert torch.allclose(found(images_BCHW).embedding_BD, expected_BD, atol=1e-4)
    floats_BCHW = images_BCHW.float() / 255
    assert torch.allclose(found(floats_BCHW).embedding_BD, expected_BD, atol=1e-4)


class Tokens(nn.Module):
    """A network over token ids, one of whose values is called what files call the output."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 16)
        self.layer = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.GELU())

    def forward(self, ids_BT):
        return self.layer(self.table(ids_BT)).mean(1)


@pytest.mark.parametrize("kind", QUICK)
@torch.no_grad()
def test_token_ids(kind, tmp_path):
    torch.manual_seed(0)
    model = Wrapped(Tokens().eval(), torch.randint(0, 50, (4, 7)))
    found = write(kind, model, tmp_path)
    ids_BT = torch.randint(0, 50, (9, 7))
    assert found.spec is None and found.input_dtype == "int64"
    assert torch.allclose(found(ids_BT).embedding_BD, model(ids_BT).embedding_BD, atol=1e-4)
    with pytest.raises(UserError, match=r"takes int64, got torch.float32"):
        found(ids_BT.float())


class Fickle(nn.Linear):
    def forward(self, x_BCHW):
        return super().forward(x_BCHW.mean((2, 3))) * (2 if x_BCHW.sum() > 0 else 3)


@pytest.mark.parametrize("kind", QUICK)
def test_what_cannot_be_exported_is_said_in_one_line_with_the_module(kind, tmp_path):
    model = Wrapped(nn.Sequential(nn.Identity(), Fickle(3, 3)), torch.rand(2, 3, 8, 8))
    with pytest.raises(UserError, match=r"cannot export 'Sequential' .*\('1'\)") as caught:
        write(kind, model, tmp_path)
    assert "depends on the values" in str(caught.value) and "\n" not in str(caught.value)


def test_the_names_of_files_are_distinct():
    files = [RUNTIMES[kind].file for kind in ALL]
    assert len(set(files)) == len(files)


def test_a_missing_library_names_its_extra(monkeypatch):
    for kind in ALL:
        runtime = RUNTIMES[kind]
        monkeypatch.setattr(runtime, "module", "no_such_library")
        with pytest.raises(UserError, match=f"{kind} requires no_such_library") as caught:
            runtime.require()
        assert runtime.extra is None or f"ssdistill[{runtime.extra}]" in str(caught.value)
