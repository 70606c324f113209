import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ssdistill.compress import Context
from ssdistill.compress.export import Export, Uint8Encoder
from ssdistill.data.decode import square
from ssdistill.errors import UserError
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.models.wrapped import Wrapped
from ssdistill.settings.registry import STEPS

SMALL = {"layers": (1, 1, 0, 0), "channels": (8, 16, 16, 16), "stem_type": "deep",
         "stem_width": 8, "zero_init_last": False}  # fmt: skip


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    settings = EncoderSettings(name="resnet10t", args=SMALL, stem_stride=2)
    return build_encoder(settings, 16, (0.4, 0.5, 0.6), (0.2, 0.3, 0.2)).eval()


def export(model, folder, **settings):
    context = Context(images=lambda n, seed: torch.zeros(0), folder=folder)
    return Export(**settings).apply(model, context), context.record


def test_the_registry_builds_the_step_and_rows_are_told_apart():
    settings = STEPS.schema("export")(runtime="torch_export", uint8=True)
    step = STEPS.build(settings)
    assert isinstance(step, Export) and step.uint8 and step.leaf
    assert Export.row(settings) == "exported_torch_export"
    assert Export.row(STEPS.schema("export")()) == "exported_onnxruntime"


@torch.no_grad()
def test_a_file_is_written_compared_and_timed_beside_onnx_runtime(encoder, tmp_path):
    found, record = export(encoder, tmp_path, runtime="torch_export")
    assert found.path == tmp_path / "model.exported.pt2" and found.spec == encoder.spec
    assert record["difference"] < 1e-5 and record["write_seconds"] > 0
    assert record["file_bytes"] == found.path.stat().st_size
    assert record["file_ms"] > 0 and record["onnxruntime_ms"] > 0
    assert [file.name for file in tmp_path.iterdir()] == ["model.exported.pt2"]


@torch.no_grad()
def test_uint8_folds_conversion_and_normalization_into_the_file(encoder, tmp_path):
    found, record = export(encoder, tmp_path, runtime="onnxruntime", uint8=True)
    images_BCHW = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    expected_BD = encoder(images_BCHW / 255).embedding_BD
    assert found.input_dtype == "uint8" and record["file_ms"] > 0
    for x_BCHW in (images_BCHW, images_BCHW / 255):
        assert torch.allclose(found(x_BCHW).embedding_BD, expected_BD, atol=1e-4)


@pytest.mark.parametrize("side", [12, 16, 50])
@torch.no_grad()
def test_pictures_are_resized_as_data_sets_are(encoder, side):
    generator = torch.Generator().manual_seed(0)
    images_BCHW = torch.randint(60, 190, (2, 3, side, side), generator=generator).byte()
    seen = []
    source = Uint8Encoder(encoder, side)
    source.net = Spy(encoder, seen)
    source(images_BCHW)
    small = [torch.tensor(square(p.permute(1, 2, 0).numpy(), 16)) for p in images_BCHW]
    expected_BCHW = torch.stack(small).permute(0, 3, 1, 2) / 255
    # Pillow rounds to whole numbers and clips, after each of two passes.
    assert (seen[0] - expected_BCHW).abs().max() < 1.6 / 255


class Spy(nn.Module):
    def __init__(self, net, seen):
        super().__init__()
        self.net, self.seen = net, seen

    def forward(self, x_BCHW):
        self.seen.append(x_BCHW)
        return self.net(x_BCHW)


def test_a_difference_above_the_tolerance_is_an_error(encoder, tmp_path):
    with pytest.raises(UserError, match="differs from PyTorch on 'resnet10t'"):
        export(encoder, tmp_path, runtime="onnxruntime", tolerance=1e-12)


def test_a_file_cannot_be_exported_again(tmp_path):
    file = SimpleNamespace(path=tmp_path / "model.onnx", runtime="onnxruntime")
    with pytest.raises(UserError, match=r"export cannot follow quantize or export: .*model.onnx"):
        export(file, tmp_path)


def test_weights_that_are_no_numbers_are_named(encoder, tmp_path):
    broken = copy.deepcopy(encoder)
    broken.net.bn1.weight.data[0] = float("nan")
    with pytest.raises(UserError, match=r"export: .*bn1.weight"):
        export(broken, tmp_path)
    assert not list(tmp_path.iterdir())


def test_settings_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"resize_from requires export.uint8"):
        Export(resize_from=32)
    with pytest.raises(UserError, match=r"unknown runtime 'onnxruntme'.*onnxruntime"):
        Export(runtime="onnxruntme")
    ids = Wrapped(nn.Embedding(9, 4), torch.randint(0, 9, (2, 3)), lambda net, x: net(x).mean(1))
    with pytest.raises(
        UserError, match="uint8 requires an image encoder, but 'Embedding' is not one"
    ):
        export(ids, tmp_path, uint8=True)
