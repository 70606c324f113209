"""Count multiply-accumulates (MACs) of one forward pass."""

import logging
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from ssdistill.errors import UserError, shortened
from ssdistill.models.examples import black_image
from ssdistill.models.model import Model
from ssdistill.settings import Size

if TYPE_CHECKING:
    from ssdistill.models.backbones import Encoder

logger = logging.getLogger(__name__)


@torch.no_grad()
def count_macs(model: Any, image_size: Size | None = None) -> int:
    """Count multiply-accumulates (MACs) of one forward pass on one input.

    Convolutions, matrix products and attention, whichever kernel computes them. Element-wise
    work (normalization, activations, pooling) and the look-up of embeddings are not counted;
    masked attention counts all pairs of tokens. An operation that multiplies matrices and has no
    formula is named in a warning.

    Args:
        model: a PyTorch :class:`~ssdistill.models.model.Model`.
        image_size: for an encoder, side or height and width of the image, in pixels; by default
            the input is the model's own example.

    Raises:
        UserError: for a file of a runtime, whose float parent has the same count, or an operator
            that PyTorch cannot count.
    """
    if not isinstance(model, nn.Module):
        raise UserError(
            f"cannot count MACs of {model.path}: count its PyTorch parent, "
            "which has the same number"
        )
    modes = {module: module.training for module in model.modules()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    # The counter stumbles over a view of a trainable parameter that was made without gradients.
    model.requires_grad_(False)
    try:
        with (
            _plain_kernels(),
            _Operations() as operations,
            FlopCounterMode(display=False, custom_mapping=_formulas()) as counter,
            _HigherOrder() as whole,
        ):
            model(_input(model, image_size))
    except (NotImplementedError, TypeError) as error:
        if not re.search("higher_?order", str(error), re.I):
            raise  # the network's own error
        # An operator that has no rule for counters.
        raise UserError(
            f"cannot count the MACs of this network ({shortened(str(error), 150)}); count one "
            "that calls torch.nn.functional.scaled_dot_product_attention instead"
        ) from error
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for module, mode in modes.items():
            module.training = mode
    if uncounted := sorted(operations.names & UNCOUNTED | whole.uncounted):
        logger.warning("MACs are underestimated: cannot count %s", ", ".join(uncounted))
    return (counter.get_total_flops() + whole.flops) // 2


def _input(model: nn.Module, image_size: Size | None) -> Tensor:
    if image_size is not None:
        return black_image(cast("Encoder", model), image_size)
    return cast("Model", model).example(1)


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Disable fused whole-layer kernels, whose products the counter cannot see.

    In evaluation ``nn.MultiheadAttention`` and ``nn.TransformerEncoderLayer`` take a fused path,
    and a recurrent layer is one call of oneDNN.
    """
    fused, onednn = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.mkldnn.enabled = False
    try:
        # What is compiled, as flex_attention compiles itself, refuses to run under a counter.
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        torch.backends.mkldnn.enabled = onednn


class _Operations(TorchDispatchMode):
    """The names of all operations that run, after the counter has taken them apart."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class _HigherOrder(TorchDispatchMode):
    """FLOPs of operations that take functions, such as ``flex_attention``: run as a whole.

    torch's counter has a formula for some of them and stumbles over them when they run eagerly.
    """

    supports_higher_order_operators = True

    def __init__(self):
        super().__init__()
        self.flops, self.uncounted = 0, set[str]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not isinstance(func, HigherOrderOperator) or func is torch.ops.higher_order.cond:
            return func(*args, **kwargs)
        with _disable_current_modes():
            out = func(*args, **kwargs)
        if formula := WHOLE.get(func.name()):
            self.flops += formula(*(getattr(value, "shape", value) for value in args))
        elif func in flop_registry:
            self.flops += flop_registry[func](*args, **kwargs, out_val=out)
        else:
            self.uncounted.add(func.name())
        return out


def _formulas() -> dict[Any, Callable[..., int]]:
    """FLOPs (twice the multiply-accumulates) of operations that torch's counter passes over.

    Which kernel computes ``scaled_dot_product_attention`` depends on release, processor and
    shapes, and the counter of no release knows all of them.
    """
    named = {
        "_scaled_dot_product_flash_attention_for_cpu": _attention,
        "_scaled_dot_product_flash_attention": _attention,
        "_scaled_dot_product_efficient_attention": _attention,
        "_scaled_dot_product_cudnn_attention": _attention,
        "_scaled_dot_product_fused_attention_overrideable": _attention,
        "_scaled_dot_product_attention_math_for_mps": _attention,
        "mv": lambda a, x, **_: 2 * math.prod(a),
        "addmv": lambda y, a, x, **_: 2 * math.prod(a),
        "dot": lambda x, y, **_: 2 * math.prod(x),
        "vdot": lambda x, y, **_: 2 * math.prod(x),
        "addbmm": lambda y, a, b, **_: 2 * math.prod(a) * b[-1],
    }
    formulas = {
        getattr(torch.ops.aten, name): formula
        for name, formula in named.items()
        if hasattr(torch.ops.aten, name)
    }
    if hasattr(torch.ops.torchvision, "deform_conv2d"):
        formulas[torch.ops.torchvision.deform_conv2d] = _deformed
    return formulas


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Queries (…, L, E) by keys (…, S, E), and the weights by values (…, S, V).

    Grouped queries share keys: the heads that count are the query's.
    """
    *batch, length, width = query
    return 2 * math.prod(batch) * length * key[-2] * (width + value[-1])


def _deformed(x: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """As a convolution: weights (O, I / groups, H, W) by output positions (N, O, H, W)."""
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


WHOLE = {"flex_attention": _attention}
"""Formulas of operations that take functions; torch 2.11 has none. All pairs of tokens count."""
UNCOUNTED = {
    "_cdist_forward",
    "_grouped_mm",
    "_native_multi_head_attention",
    "_scaled_grouped_mm",
    "_transformer_encoder_layer_fwd",
    "_trilinear",
    "conv_tbc",
    "mkldnn_rnn_layer",
}
"""Operations that multiply matrices and have no formula, here or in torch."""
