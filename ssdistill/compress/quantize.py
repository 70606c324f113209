"""Post-training quantization step: int8 files for ONNX Runtime, OpenVINO and PyTorch."""

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from ssdistill.artifacts.runtimes import RuntimeModel, on_arm
from ssdistill.artifacts.runtimes.onnx_runtime import OnnxEncoder, export_onnx
from ssdistill.compress import Context, Step
from ssdistill.compress.int8.bias_correction import correct_biases
from ssdistill.compress.int8.checks import agreement_of, check_inputs
from ssdistill.compress.int8.equalize import equalize
from ssdistill.compress.int8.initializers import merge_equal_initializers
from ssdistill.compress.int8.onnx_file import (
    Calibration,
    count_int8,
    write_dynamic,
    write_static,
)
from ssdistill.compress.int8.onnx_layers import chosen_nodes, has_attention
from ssdistill.compress.preconditions import check_input_model
from ssdistill.errors import UserError
from ssdistill.measure.hardware import int8_saturates
from ssdistill.models.model import Model
from ssdistill.settings import Fraction, Positive, PositiveInt
from ssdistill.settings.registry import RUNTIMES

if TYPE_CHECKING:
    from ssdistill.settings.kinds.steps import QuantizeSettings

log = logging.getLogger(__name__)

FEWEST_INPUTS = 8
SATURATES = (
    "this processor has no VNNI: ONNX Runtime's sums of 8-bit products overflow on it, and what is "
    "measured here is worse than elsewhere; set quantize.reduce_range=true for 7-bit weights"
)
PRODUCTS = ("Conv", "MatMul", "Gemm")
MODES = {"onnxruntime": ("static", "dynamic"), "openvino": ("static", "bf16"),
         "torchao": ("static",), "executorch": ("static",)}  # fmt: skip
WHY_NOT = {
    "bf16": "computes in bf16 only with runtime=openvino; 16-bit weights alone would be "
    "storage only",
    "dynamic": "has no dynamic int8: use runtime=onnxruntime",
}
OWN_FILES = {"torchao": "aot_inductor", "executorch": "executorch"}


class Quantize(Step):
    """Post-training quantization: the model as a file that a runtime computes in 8 bits.

    The model is written with its normalization, so that calibration cannot use another one, and
    calibrated on unlabeled inputs. The file is opened again and compared with the float model on
    other inputs of the same kind, by centered cosine and CKA: features after a ReLU share a
    direction that makes any two encoders look alike to a plain cosine.

    Args:
        runtime: what runs it: ``onnxruntime`` anywhere, ``openvino`` and ``torchao`` (compiled
            by PyTorch for this kind of processor) on x86, ``executorch`` on mobile devices.
        mode: ``static``: ranges of activations from calibration, fastest. ``dynamic``
            (onnxruntime): ranges taken anew at every call, for linear layers only, as dynamic
            convolutions are four times slower than float ones. ``bf16`` (openvino): no int8 but
            products in bf16 where the processor has them, weights in 16 bits, no calibration.
        scheme: sign of activations and weights for onnxruntime: ``u8s8`` is the fast path on
            x86, ``s8s8`` on ARM; ``auto`` takes the one of this machine.
        calibration: how the range of an activation is chosen: the extremes, a percentile, least
            Kullback-Leibler divergence (onnxruntime), or least squared error.
        percentile: in percent, for ``calibration: percentile``.
        calibration_images: inputs the ranges are taken from.
        check_images: further inputs the result is checked on.
        min_cosine: smallest accepted mean centered cosine to the float embedding.
        min_cka: smallest accepted debiased CKA with it.
        reduce_range: 7-bit weights, for x86 processors without VNNI, where sums of 8-bit products
            overflow (said in the log where that is so).
        operators: ONNX operators to quantize, e.g. ``[MatMul, Gemm]``, for onnxruntime. By
            default all that it can; in networks with attention convolutions and products only:
            their residual stream is worth more bits than it takes time.
        float_layers: names of layers or blocks to leave float, ``*`` stands for anything.
            ``auto``: for openvino squeeze-excite gates, hard-swishes and hard-sigmoids; none for
            onnxruntime, which has no int8 hard-swish anyway, and where float gates doubled the
            file of a MobileNetV3, were no faster and no closer.
        bias_correction: shift biases by the mean error that rounding makes (onnxruntime static:
            layer after layer; openvino: NNCF's fast variant).
        equalize: bring the weights of layers around a ReLU to one size first; helps where
            ranges differ much between channels.
        seed: which inputs.
    """

    kind = "quantize"
    paper = "Jacob et al., CVPR 2018, arXiv:1712.05877"
    makes = "int8"
    leaf = True

    def __init__(
        self,
        *,
        runtime: Literal["onnxruntime", "openvino", "torchao", "executorch"] = "onnxruntime",
        mode: Literal["static", "dynamic", "bf16"] = "static",
        scheme: Literal["auto", "u8s8", "s8s8"] = "auto",
        calibration: Literal["minmax", "percentile", "entropy", "mse"] = "minmax",
        percentile: Positive = 99.999,
        calibration_images: PositiveInt = 256,
        check_images: PositiveInt = 256,
        min_cosine: Fraction = 0.8,
        min_cka: Fraction = 0.8,
        reduce_range: bool = False,
        operators: list[str] | None = None,
        float_layers: Literal["auto"] | list[str] = "auto",
        bias_correction: bool = False,
        equalize: bool = False,
        seed: int = 0,
    ):
        self.runtime, self.mode = runtime, mode
        self.scheme = scheme if scheme != "auto" else "s8s8" if on_arm() else "u8s8"
        self.calibration: Calibration = calibration
        self.percentile = percentile
        self.calibration_images, self.check_images = calibration_images, check_images
        self.min_cosine, self.min_cka = min_cosine, min_cka
        self.reduce_range, self.operators = reduce_range, operators
        self.float_layers = [] if float_layers == "auto" else list(float_layers)
        self.bias_correction, self.equalize, self.seed = bias_correction, equalize, seed
        self._check(scheme)

    @classmethod
    def row(cls, settings: "QuantizeSettings") -> str:
        """``int8``, and behind it what is not the default: ``int8_dynamic``, ``int8_openvino``."""
        return cls._row(settings.mode, settings.runtime)

    @classmethod
    def _row(cls, mode: str, runtime: str) -> str:
        parts = [mode] * (mode != "static") + [runtime] * (runtime != "onnxruntime")
        return "_".join([cls.makes, *parts])

    def _check(self, scheme: str) -> None:
        """Reject settings that the runtime does not support, before computing anything."""
        if self.mode not in MODES[self.runtime]:
            raise UserError(
                f"quantize.mode={self.mode}: runtime={self.runtime} {WHY_NOT[self.mode]}"
            )
        static = self.mode == "static"
        onnx, openvino = self.runtime == "onnxruntime", self.runtime == "openvino"
        unsupported = {
            f"scheme={scheme}": scheme != "auto" and not (onnx and static),
            f"operators={self.operators}": bool(self.operators) and not onnx,
            f"calibration={self.calibration}": self.calibration != "minmax"
            and not (static and (onnx or (openvino and self.calibration != "entropy"))),
            "reduce_range": self.reduce_range and not (onnx or (openvino and static)),
            "bias_correction": self.bias_correction and not (static and (onnx or openvino)),
            f"float_layers={self.float_layers}": bool(self.float_layers)
            and not (onnx or (openvino and static)),
        }
        for setting, is_set in unsupported.items():
            if is_set:
                raise UserError(
                    f"quantize.{setting}: not supported by runtime={self.runtime} with "
                    f"mode={self.mode}: remove it"
                )

    def apply(self, model: Model, context: Context) -> RuntimeModel:
        """Write the quantized file to ``context.folder`` and open it.

        ``context.record`` receives ``runtime``, ``mode``, how much was quantized, and from the
        check inputs ``cosine`` (centered), its 1 % quantile ``cosine_p01`` and ``cka``.

        Raises:
            UserError: a model that is a file already, weights or inputs that cannot be right, a
                runtime that is missing or cannot do it, nothing quantized, or an agreement below
                ``min_cosine`` or ``min_cka``.
        """
        check_input_model(self.kind, model)
        calibration, check = self._images(context)
        check_inputs(model, calibration)
        prepared, facts = model, {}
        if self.equalize:
            prepared, pairs = equalize(model)
            facts["equalized_pairs"] = len(pairs)
        quantized, counts = self._writer()(prepared, context.folder, calibration)
        agreement = agreement_of(model, quantized, check)
        context.record.update(runtime=self.runtime, mode=self.mode, **facts, **counts, **agreement)
        # "not >=" so that NaN fails as well.
        for name, least in (("cosine", self.min_cosine), ("cka", self.min_cka)):
            if not agreement[name] >= least:
                raise UserError(
                    f"quantize: {self._row(self.mode, self.runtime)} agrees too little with "
                    f"'{model.name}': {name} is {agreement[name]:.3f} and min_{name} is {least}; "
                    "try another calibration, fewer operators, float_layers or bias_correction"
                )
        return quantized

    def _images(self, context: Context) -> tuple[Tensor, Tensor]:
        """Draw disjoint inputs for calibration and for the agreement check."""
        image_count = self.calibration_images + self.check_images
        inputs = context.images(image_count, self.seed)
        if len(inputs) < FEWEST_INPUTS:
            raise UserError(f"quantize requires at least {FEWEST_INPUTS} inputs, got {len(inputs)}")
        # They may come in the order of the data set, where one class follows the other.
        generator = torch.Generator().manual_seed(self.seed)
        inputs = inputs[torch.randperm(len(inputs), generator=generator)]
        cut = round(len(inputs) * self.calibration_images / image_count)
        cut = min(max(cut, FEWEST_INPUTS // 2), len(inputs) - FEWEST_INPUTS // 2)
        return inputs[:cut], inputs[cut:]

    def _writer(self) -> Callable[[Model, Path, Tensor], tuple[RuntimeModel, dict[str, Any]]]:
        if self.runtime == "openvino":
            return self._write_bf16 if self.mode == "bf16" else self._write_openvino
        return self._write_onnx if self.runtime == "onnxruntime" else self._write_pt2e

    def _write_onnx(
        self, model: Model, folder: Path, inputs: Tensor
    ) -> tuple[RuntimeModel, dict[str, Any]]:
        import onnx

        if int8_saturates() and not self.reduce_range:
            log.warning("quantize: %s", SATURATES)
        path, counts = folder / RUNTIMES["onnxruntime"].file, {}
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            source = Path(scratch) / "float.onnx"
            export_onnx(model, source)
            options: dict[str, Any] = {"reduce_range": self.reduce_range}
            options["operators"] = self.operators
            if self.float_layers:
                graph = onnx.load(source).graph
                options["float_nodes"] = chosen_nodes(graph, model.net, self.float_layers)
            if self.mode == "dynamic":
                write_dynamic(source, path, **options)
            else:
                if self.operators is None and has_attention(model.net):
                    options["operators"] = PRODUCTS
                write_static(
                    source, path, inputs, signed=self.scheme == "s8s8",
                    calibration=self.calibration, percentile=self.percentile, **options
                )  # fmt: skip
                counts["scheme"] = self.scheme
            counts |= count_int8(path, self.mode)
            if self.bias_correction:
                counts["corrected_biases"] = correct_biases(source, path, inputs)
            merge_equal_initializers(path)
        return OnnxEncoder(path, model.embed_dim, getattr(model, "spec", None)), counts

    def _write_openvino(
        self, model: Model, folder: Path, inputs: Tensor
    ) -> tuple[RuntimeModel, dict[str, Any]]:
        from ssdistill.compress.int8.openvino_file import write_openvino

        return write_openvino(
            model,
            folder / RUNTIMES["openvino"].file,
            inputs,
            calibration=self.calibration,
            percentile=self.percentile,
            reduce_range=self.reduce_range,
            bias_correction=self.bias_correction,
            float_layers=self.float_layers or None,
        )

    def _write_bf16(
        self, model: Model, folder: Path, inputs: Tensor
    ) -> tuple[RuntimeModel, dict[str, Any]]:
        from ssdistill.artifacts.runtimes.openvino import OpenVino

        runtime = OpenVino(weights="fp16", arithmetic="bf16")
        path = folder / runtime.file
        runtime.write(model, path)
        return runtime.opens(path, model.embed_dim, getattr(model, "spec", None)), {}

    def _write_pt2e(
        self, model: Model, folder: Path, inputs: Tensor
    ) -> tuple[RuntimeModel, dict[str, Any]]:
        from ssdistill.compress.int8.pt2e import Target, quantize_pt2e

        path = folder / RUNTIMES[OWN_FILES[self.runtime]].file
        target = cast("Target", self.runtime)  # see _writer
        return quantize_pt2e(model, inputs, path, target), {}
