"""Export the network to a runtime in float32."""

import contextlib
import time
from typing import TYPE_CHECKING, Annotated, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ssdistill.artifacts.runtimes import MAX_DIFFERENCE, RuntimeModel, check
from ssdistill.artifacts.runtimes.onnx_cache import float_onnx
from ssdistill.artifacts.runtimes.onnx_runtime import OnnxEncoder
from ssdistill.compress import Context, Step
from ssdistill.compress.preconditions import check_input_model
from ssdistill.errors import UserError
from ssdistill.measure.latency import compare_latency
from ssdistill.models.backbones import Encoder
from ssdistill.models.model import Model
from ssdistill.models.representation import Representation
from ssdistill.settings import Positive, Size, height_width
from ssdistill.settings.registry import RUNTIMES, KindOf

if TYPE_CHECKING:
    from ssdistill.settings.kinds.steps import ExportSettings


class Uint8Encoder(Model):
    """An encoder with uint8 input, as image files hold it: 0 to 255.

    Args:
        encoder: is used, not copied.
        size: of the images, which are brought to the encoder's image size by a bicubic,
            antialiased filter; None where they have that size.
    """

    net: Encoder
    filter_SH: Tensor | None
    filter_TW: Tensor | None

    def __init__(self, encoder: Encoder, size: Size | None = None):
        super().__init__()
        self.net, self.spec, self.embed_dim = encoder, encoder.spec, encoder.embed_dim
        taken = height_width(encoder.spec.image_size)
        self.given = height_width(size) if size else taken
        rows, columns = zip(self.given, taken, strict=True)
        self.register_buffer("filter_SH", None if self.given == taken else _filter(*rows))
        self.register_buffer("filter_TW", None if rows == columns else _filter(*columns))

    @property
    def name(self) -> str:
        return self.net.name

    def example(self, count: int) -> Tensor:
        """Uniform noise (count, C, H, W) from 0 to 255."""
        generator, shape = (
            torch.Generator().manual_seed(0),
            (count, self.spec.in_chans, *self.given),
        )
        noise = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        return noise.to(self.device)

    def set_taps(self, taps: tuple[str, ...]) -> None:
        self.net.set_taps(taps)

    def forward(self, x_BCHW: Tensor) -> Representation:
        """Encode uint8 images (B, C, H, W)."""
        x_BCHW = x_BCHW.float() / 255
        if self.filter_SH is not None:
            # With an axis more: of four, OpenVINO takes the last for the channels of what follows.
            x_BC1HW = x_BCHW.unsqueeze(2)
            filter_TW = self.filter_SH if self.filter_TW is None else self.filter_TW
            x_BCHW = (self.filter_SH @ x_BC1HW @ filter_TW.T).clamp(0, 1).squeeze(2)
        return self.net(x_BCHW)


def _filter(given: int, taken: int) -> Tensor:
    """Matrix (taken, given) that resizes columns, or rows from the right by its transpose.

    A matrix: not every runtime has the filter, and all of them have products.
    """
    identity_HH = torch.eye(given).view(1, 1, given, given)
    return F.interpolate(identity_HH, (taken, given), mode="bicubic", antialias=True)[0, 0]


class Export(Step):
    """Write the network for a runtime, in float32, and measure what that alone changes.

    The file is opened again and compared with PyTorch. An encoder's normalization is in it; with
    ``uint8`` it takes images as files hold them, so that a program that uses it needs neither
    mean nor deviation nor PyTorch.

    Args:
        runtime: what the file is for.
        uint8: fold the conversion from uint8 (B, C, H, W) into the file; encoders only.
        resize_from: side of the images, or ``[height, width]``, where the file is to bring them
            to the encoder's image size; needs ``uint8``.
        tolerance: largest accepted difference to PyTorch, relative to the largest value.
    """

    kind = "export"
    paper = "ONNX; PyTorch torch.export, AOTInductor; ExecuTorch; OpenVINO"
    makes = "exported"
    leaf = True

    def __init__(
        self,
        *,
        runtime: Annotated[str, KindOf(RUNTIMES)] = "onnxruntime",
        uint8: bool = False,
        resize_from: Size | None = None,
        tolerance: Positive = MAX_DIFFERENCE,
    ):
        self.runtime = RUNTIMES[runtime]
        if resize_from is not None and not uint8:
            raise UserError("export.resize_from requires export.uint8=true")
        self.uint8, self.resize_from, self.tolerance = uint8, resize_from, tolerance

    @classmethod
    def row(cls, settings: "ExportSettings") -> str:
        return f"{cls.makes}_{settings.runtime}"

    def apply(self, model: Model, context: Context) -> RuntimeModel:
        """Write the file to ``context.folder`` and open it.

        ``context.record`` receives the largest ``difference`` to PyTorch, ``file_bytes``,
        ``write_seconds``, and the median time in ms of one input with one thread as
        ``file_ms``, beside the same computation in ONNX Runtime as ``onnxruntime_ms``, both timed
        in turns.

        Raises:
            UserError: a file instead of a model, weights that are not finite, a runtime that is
                not installed or cannot do what the model does, or a difference that is too
                large; ``uint8`` of a model that is no encoder.
        """
        check_input_model(self.kind, model)
        if self.uint8 and not isinstance(model, Encoder):
            raise UserError(
                f"export.uint8 requires an image encoder, but '{model.name}' is not one"
            )
        self.runtime.require()
        source = Uint8Encoder(cast("Encoder", model), self.resize_from) if self.uint8 else model
        runtime, path = self.runtime(), context.folder / self.runtime.file
        runtime.tolerance = self.tolerance
        start = time.perf_counter()
        runtime.write(source, path)
        seconds = time.perf_counter() - start
        written = runtime.opens(path, model.embed_dim, getattr(model, "spec", None))
        difference = check(source, written, self.tolerance)
        size = sum(file.stat().st_size for file in context.folder.iterdir())
        context.record.update(difference=difference, file_bytes=size, write_seconds=seconds)
        context.record.update(_times(source, written))
        return written


def _times(source: Model, written: RuntimeModel) -> dict[str, float]:
    models = {"file": written}
    with contextlib.ExitStack() as stack:
        if written.runtime != OnnxEncoder.runtime:
            # What ONNX Runtime cannot do is timed alone.
            with contextlib.suppress(UserError):
                models["onnxruntime"] = stack.enter_context(float_onnx(source))
        rows = compare_latency(models, source.example(2), (1,))
    return {f"{row.name}_ms": row.p50_ms for row in rows}
