"""Low-bit weight storage (2 to 8 bits), with or without quantization-aware training."""

import copy
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Annotated, Literal, Unpack, cast

import torch
from pydantic import Field
from torch import nn

from ssdistill.artifacts.coding.codes import Uniform
from ssdistill.compress import Context, Step
from ssdistill.compress.codes.fake_quant import (
    Clip,
    GridOptions,
    on_grid,
    quantize_weight,
    weights_of,
)
from ssdistill.compress.codes.mean_shifts import correct_shifts
from ssdistill.compress.comparing import cka_with
from ssdistill.compress.preconditions import check_input_model
from ssdistill.errors import UserError, nearest
from ssdistill.label_free.agreement import centered_cosine
from ssdistill.models.model import Model
from ssdistill.settings import OpenFraction, PositiveInt, Settings
from ssdistill.train.optim import OptimSettings
from ssdistill.train.settings import TrainSettings

if TYPE_CHECKING:
    from ssdistill.settings.kinds.steps import LowBitSettings

MOST_BITS = 8
Bits = Annotated[int, Field(ge=2, le=MOST_BITS)]


class TrainingOnGrid(Settings):
    """Quantization-aware training: the distillation losses again, with the weights on the grid.

    Args:
        steps: optimizer steps.
        batch_size: inputs a step.
        optim: the optimizer; rates above 1e-3 undo more than they mend.
        target: what the model learns from: the ``teacher``, or ``original``, the model as it
            was before the first compression step; ``auto`` is the teacher where there is one.
    """

    steps: PositiveInt = 100
    batch_size: PositiveInt = 256
    optim: OptimSettings = OptimSettings(lr=3e-4, weight_decay=0.0)
    target: Literal["auto", "teacher", "original"] = "auto"


class LowBit(Step):
    """Store the weights of convolutions, linear layers and embeddings in a few bits each.

    This is for the file: the network that is loaded from it computes in floats, as fast as
    before. What runs in integers is made by ``quantize``. Biases and norms stay as they are.

    Args:
        bits: of every weight; or of the layers that match a pattern (``{layer4.*: 3, '*': 5}``),
            the first that matches, the others staying floats.
        edges: bits of the first and of the last layer, where ``bits`` is one number.
        cka: take more than ``bits``, as few as it needs, where the rounded model would keep
            less than this debiased CKA with the model it is given.
        clip: ``mse`` clips large weights where that lowers the squared error; ``max`` does not.
        per_channel: a scale for each output channel instead of one for a layer.
        symmetric: no zero point: two bytes less a channel, and a coarser grid.
        bias_correction: shift biases and batch statistics so that layers keep their means, where
            that brings the embeddings closer on other images.
        images: unlabeled inputs for the correction and to see what has changed.
        seed: which images.
        qat: train with the weights on the grid; worth its time at three bits and below.
    """

    kind = "lowbit"
    paper = "Nagel et al., 2021, arXiv:2106.08295"
    makes = "lowbit"

    def __init__(
        self,
        *,
        bits: Bits | dict[str, Bits] = 4,
        edges: Bits | None = None,
        cka: OpenFraction | None = None,
        clip: Clip = "mse",
        per_channel: bool = True,
        symmetric: bool = False,
        bias_correction: bool = True,
        images: Annotated[int, Field(ge=16)] = 256,
        seed: int = 0,
        qat: TrainingOnGrid | None = None,
    ):
        if cka is not None and not isinstance(bits, int):
            raise UserError(
                "lowbit.cka chooses one bit width for all layers: give bits as one number, not by "
                "layer"
            )
        self.bits, self.edges, self.bias_correction = bits, edges, bias_correction
        self.cka = cka
        self.grid = GridOptions(clip=clip, per_channel=per_channel, symmetric=symmetric)
        self.images, self.seed, self.qat = images, seed, qat

    @classmethod
    def row(cls, settings: "LowBitSettings") -> str:
        bits = f"_{settings.bits}" if isinstance(settings.bits, int) else ""
        bits = bits if settings.cka is None else f"_cka_{100 * settings.cka:.3g}"
        return f"{cls.makes}{bits}" + ("_trained" if settings.qat else "")

    @classmethod
    def learns(cls, settings: "LowBitSettings") -> bool:
        return settings.qat is not None

    def apply(self, model: Model, context: Context) -> Model:
        """A copy of ``model`` whose weights lie on their grids, and whose ``coded`` says so.

        ``context.record`` receives ``weights`` (how many tensors), ``mean_bits`` (of one number
        in them), ``corrected`` (1 where the bias correction helped), ``lowbit_cosine`` (centered
        cosine of the embeddings with those of ``model``) and ``storage`` (that it is only that).

        Raises:
            UserError: a file for a runtime, a pattern that matches no layer, weights that are
                not finite, or nothing to train with.
        """
        check_input_model(self.kind, model)
        targets, inputs = self._targets(context), context.images(self.images, self.seed)
        bits, quantized = self._rounded(model, inputs, context)
        corrected = False
        if self.bias_correction:
            coded = quantized.coded
            quantized, corrected = correct_shifts(quantized, model, inputs)
            quantized.coded = coded
        if self.qat:
            quantized = self._train(quantized, model, list(bits), targets, context)
        numbers = {key: quantized.coded[key].integers.numel() for key in bits}
        context.record.update(
            weights=len(bits),
            mean_bits=sum(bits[k] * n for k, n in numbers.items()) / sum(numbers.values()),
            corrected=int(corrected),
            lowbit_cosine=_cosine(quantized, model, inputs),
            storage="fewer bits in the file; memory and speed as before",
        )
        return quantized

    def _rounded(
        self, model: Model, inputs: torch.Tensor, context: Context
    ) -> tuple[dict[str, int], Model]:
        """Choose bits by state dict key and round the model to its grids."""
        if self.cka is None:
            bits = self._bits_by_key(model, self.bits)
            return bits, put_on_grid(model, bits, **self.grid)
        cka = cka_with(model, inputs)
        for width in range(cast("int", self.bits), MOST_BITS + 1):  # with cka it is a number
            bits = self._bits_by_key(model, width)
            quantized = put_on_grid(model, bits, **self.grid)
            context.record["cka"] = cka(quantized)
            if context.record["cka"] >= self.cka:
                return bits, quantized
        raise UserError(
            f"lowbit.cka={self.cka:.8g}: out of reach, even {MOST_BITS} bits give '{model.name}' "
            f"a CKA of {context.record['cka']:.8g}; lower it"
        )

    def _bits_by_key(self, model: Model, bits: int | dict[str, int]) -> dict[str, int]:
        keys = list(weights_of(model.net))
        if not keys:
            raise UserError(
                f"lowbit: '{model.name}' has no convolution, linear or embedding layer to "
                "quantize; remove this step"
            )
        if isinstance(bits, int):
            edges = dict.fromkeys((keys[0], keys[-1]), self.edges) if self.edges else {}
            return {key: edges.get(key, bits) for key in keys}
        return bits_by_pattern(bits, keys)

    def _targets(self, context: Context) -> Mapping[str, Model]:
        if not self.qat:
            return {}
        original = {"original": context.original} if context.original else {}
        chosen = {"teacher": context.teachers, "original": original}
        chosen["auto"] = context.teachers or original
        if context.train is None or not chosen[self.qat.target]:
            raise UserError("lowbit.qat requires a distill section or context.train")
        return chosen[self.qat.target]

    def _train(
        self,
        quantized: Model,
        model: Model,
        keys: list[str],
        targets: Mapping[str, Model],
        context: Context,
    ) -> Model:
        """``quantized`` after training from the weights that ``model`` had before rounding."""
        quantized, coded, layers = copy.deepcopy(quantized), quantized.coded, weights_of(model.net)
        inside = weights_of(quantized.net)
        with torch.no_grad():
            for key in keys:
                inside[key].weight.copy_(layers[key].weight)
        # Without either, _targets has refused to go on, or there is no training.
        qat, train = cast("TrainingOnGrid", self.qat), cast("Callable[..., Model]", context.train)
        training = qat.model_dump(exclude={"target"})
        with on_grid(quantized.net, {key: coded[key] for key in keys}) as grids:
            train(quantized, targets, TrainSettings(**training))
        quantized.coded = coded | _with_ties(quantized.net, grids)
        return quantized


def bits_by_pattern(patterns: Mapping[str, int], keys: list[str]) -> dict[str, int]:
    """Bits by state dict key: those of the first pattern that matches the layer's name.

    Raises:
        UserError: a pattern that matches no layer.
    """
    names = {key: key.removesuffix(".weight") for key in keys}
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names.values()):
            raise UserError(
                f"lowbit.bits: no layer matches '{pattern}'{nearest(pattern, names.values())}; "
                "correct the pattern"
            )
    matched = {
        key: next((bits for pattern, bits in patterns.items() if fnmatch(name, pattern)), None)
        for key, name in names.items()
    }
    return {key: bits for key, bits in matched.items() if bits is not None}


@torch.no_grad()
def put_on_grid(model: Model, bits: Mapping[str, int], **grid: Unpack[GridOptions]) -> Model:
    """A copy of ``model`` with the weights of these state dict keys rounded, and ``coded``.

    Args:
        model: left as it is.
        bits: by the keys of :func:`weights_of`.
        grid: as for :func:`quantize_weight`.
    """
    quantized, codes = copy.deepcopy(model), {}
    layers = weights_of(quantized.net)
    for key, width in bits.items():
        rounded, codes[key] = quantize_weight(layers[key].weight, width, **grid)
        layers[key].weight.copy_(rounded)
    quantized.coded = quantized.coded | _with_ties(quantized.net, codes)
    return quantized


def _with_ties(net: nn.Module, coded: Mapping[str, Uniform]) -> dict[str, Uniform]:
    """``coded`` and, for weights that several layers share, the same under their other keys."""
    state = net.state_dict(keep_vars=True)
    of = {id(state[key]): code for key, code in coded.items()}
    return {key: of[id(tensor)] for key, tensor in state.items() if id(tensor) in of}


@torch.inference_mode()
def _cosine(quantized: Model, model: Model, inputs: torch.Tensor) -> float:
    inputs, was_training = inputs.to(model.device), (quantized.training, model.training)
    pair = [m.eval()(inputs).embedding_BD for m in (quantized, model)]
    quantized.train(was_training[0])
    model.train(was_training[1])
    return centered_cosine(*pair).mean().item()
