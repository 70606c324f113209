"""Factorized layers: one layer as a product of two or three smaller ones."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ssdistill.errors import UserError

Form = Literal["channel", "spatial", "tucker"]
Plain = nn.Linear | nn.Conv2d
Rank = int | tuple[int, int]


class Factorized(nn.Sequential):
    """A convolution or linear layer of limited rank, as two or three layers in a row.

    Its children are ``reduce``, in one form ``core``, and ``expand``, which alone has a bias.
    A convolution of kernel (kh, kw) from I to O channels takes one of three forms:

    - ``channel``: (kh, kw) from I to r, then (1, 1) from r to O
      (Zhang et al., TPAMI 2016, arXiv:1505.06798);
    - ``spatial``: (kh, 1) from I to r, then (1, kw) from r to O
      (Jaderberg et al., BMVC 2014, arXiv:1405.3866);
    - ``tucker``: (1, 1) from I to r_in, (kh, kw) from r_in to r_out, (1, 1) from r_out to O
      (Kim et al., ICLR 2016, arXiv:1511.06530).

    A linear layer and a kernel of one pixel know only ``channel``. The shapes of the kernels
    tell the forms apart, so that plain state dicts hold all there is to know.
    """

    reduce: Plain
    core: nn.Conv2d
    expand: Plain

    @classmethod
    def like(cls, layer: nn.Module, rank: Rank, form: Form) -> "Factorized":
        """An empty one with the inputs, outputs, stride, padding and dilation of ``layer``.

        Args:
            layer: an ``nn.Linear``, or an ``nn.Conv2d`` without groups.
            rank: channels in between; for ``tucker`` (r_in, r_out).
            form: as above; where ``layer`` knows only ``channel``, that.

        Raises:
            UserError: a layer with groups or of another type.
        """
        form = form_of(layer, form)
        if form == "tucker":
            r_in, r_out = (rank, rank) if isinstance(rank, int) else rank
        else:
            r_in = r_out = rank if isinstance(rank, int) else min(rank)
        layer = cast("Plain", layer)  # form_of raises for others
        ends = (layer.weight.shape[1], layer.weight.shape[0])
        biases = (False, False, layer.bias is not None)
        return cls._build(layer, form, ends, (r_in, r_out), biases)

    @classmethod
    def from_shapes(cls, layer: nn.Module, shapes: Mapping[str, Sequence[int]]) -> "Factorized":
        """An empty one in place of ``layer`` for a state dict of these shapes.

        Args:
            layer: the layer of the uncompressed network; its own widths do not matter.
            shapes: by key: ``reduce.weight``, ``core.weight`` if any, ``expand.weight``, biases.

        Raises:
            UserError: shapes that are none of the three forms of ``layer``.
        """
        shapes = {key: tuple(shape) for key, shape in shapes.items()}
        parts = ("reduce", "core", "expand") if "core.weight" in shapes else ("reduce", "expand")
        wrong = UserError(f"no factorization of {_describe(layer)} has the shapes {shapes}")
        if not {f"{part}.weight" for part in parts} <= shapes.keys():
            raise wrong
        weights = [shapes[f"{part}.weight"] for part in parts]
        layer = cast("Plain", layer)  # form_of raises for others
        kernel = tuple(layer.weight.shape[2:])
        spatial = weights[0][2:] != kernel
        form = "tucker" if len(parts) == 3 else "spatial" if spatial else "channel"
        ends, ranks = (weights[0][1], weights[-1][0]), (weights[0][0], weights[-1][1])
        biases = ("reduce.bias" in shapes, "core.bias" in shapes, "expand.bias" in shapes)
        chained = form == "tucker" or ranks[0] == ranks[1]
        flat = any(len(weight) != layer.weight.ndim for weight in weights)
        if flat or not chained or form_of(layer, form) != form:
            raise wrong
        built = cls._build(layer, form, ends, ranks, biases)
        if {key: tuple(tensor.shape) for key, tensor in built.state_dict().items()} != shapes:
            raise wrong
        return built

    @classmethod
    def _build(
        cls,
        layer: Plain,
        form: Form,
        ends: tuple[int, int],
        ranks: tuple[int, int],
        biases: tuple[bool, bool, bool],
    ) -> "Factorized":
        if isinstance(layer, nn.Linear):
            geometry: dict[str, dict[str, Any]] = {"reduce": {}, "expand": {}}
        else:
            geometry = _geometry(layer, form)
        widths = {
            "reduce": (ends[0], ranks[0]),
            "core": ranks,
            "expand": (ranks[1], ends[1]),
        }
        kind = nn.Linear if isinstance(layer, nn.Linear) else nn.Conv2d
        weight = layer.weight
        parts = OrderedDict()
        for part, bias in zip(("reduce", "core", "expand"), biases, strict=True):
            if part in geometry:
                # skip_init: filling it with random numbers would move the global generator.
                parts[part] = nn.utils.skip_init(
                    kind,
                    *widths[part],
                    bias=bias,
                    device=weight.device,
                    dtype=weight.dtype,
                    **geometry[part],
                )
        return cls(parts).requires_grad_(weight.requires_grad).train(layer.training)

    @property
    def form(self) -> Form:
        if "core" in self._modules:
            return "tucker"
        narrow = isinstance(self.expand, nn.Conv2d) and self.expand.kernel_size != (1, 1)
        return "spatial" if narrow else "channel"

    @property
    def rank(self) -> Rank:
        """Channels in between; for ``tucker`` (r_in, r_out)."""
        ranks = (self.reduce.weight.shape[0], self.expand.weight.shape[1])
        return ranks if self.form == "tucker" else ranks[0]

    @property
    def weight(self) -> Tensor:
        """The weight of the one layer that computes the same.

        It is multiplied out at every call, for code that reads a layer's weight instead of
        calling the layer; it is no parameter.
        """
        first, last = self.reduce.weight, self.expand.weight
        if self.form == "tucker":
            return torch.einsum(
                "os,srhw,ri->oihw", last[..., 0, 0], self.core.weight, first[..., 0, 0]
            )
        if self.form == "spatial":
            return torch.einsum("orw,rih->oihw", last[:, :, 0], first[..., 0])
        return torch.einsum("or,ri...->oi...", last.flatten(1), first)

    @property
    def bias(self) -> Tensor | None:
        """The bias of the one layer that computes the same."""
        inner = getattr(self.reduce, "bias", None)
        if inner is None:
            return self.expand.bias
        # Beyond ``channel`` a bias in between is padded with zeros: no single bias equals it.
        if self.form != "channel":
            raise AttributeError(
                f"a {self.form} factorization with an inner bias has no single bias"
            )
        outer = self.expand.weight.flatten(1) @ inner
        return outer if self.expand.bias is None else outer + self.expand.bias

    @property
    def in_channels(self) -> int:
        return self.reduce.weight.shape[1]

    @property
    def out_channels(self) -> int:
        return self.expand.weight.shape[0]

    in_features = in_channels
    out_features = out_channels


def form_of(layer: nn.Module, form: Form) -> Form:
    """Factorization form that applies to ``layer`` when ``form`` is requested.

    Raises:
        UserError: a layer that is not factorized at all.
    """
    if isinstance(layer, nn.Linear):
        return "channel"
    if not isinstance(layer, nn.Conv2d) or layer.groups > 1:
        raise UserError(
            f"{_describe(layer)} cannot be factorized: only Linear and ungrouped Conv2d layers "
            "can; exclude it"
        )
    height, width = layer.kernel_size
    if height * width == 1 or (form == "spatial" and width == 1):
        return "channel"
    return form


def _geometry(conv: nn.Conv2d, form: Form) -> dict[str, dict[str, Any]]:
    """Split the kernel, stride, padding and dilation of ``conv`` among its factors."""
    pointwise = {"kernel_size": 1}
    full_kernel = {
        "kernel_size": conv.kernel_size,
        "stride": conv.stride,
        "padding": conv.padding,
        "dilation": conv.dilation,
        "padding_mode": conv.padding_mode,
    }
    if form == "channel":
        return {"reduce": full_kernel, "expand": pointwise}
    if form == "tucker":
        return {"reduce": pointwise, "core": full_kernel, "expand": pointwise}
    idle = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
    tall = {key: _axis(value, idle.get(key), 0) for key, value in full_kernel.items()}
    wide = {key: _axis(value, idle.get(key), 1) for key, value in full_kernel.items()}
    return {"reduce": tall, "expand": wide}


def _axis(value: Any, idle: int | None, axis: int) -> Any:
    """``value`` along one axis and ``idle`` along the other; words go for both."""
    if isinstance(value, str):
        return value
    return (value[0], idle) if axis == 0 else (idle, value[1])


def _describe(layer: nn.Module) -> str:
    if isinstance(layer, nn.Conv2d):
        kernel = "x".join(map(str, layer.kernel_size))
        groups = f" in {layer.groups} groups" if layer.groups > 1 else ""
        return f"Conv2d {layer.in_channels} -> {layer.out_channels} {kernel}{groups}"
    return str(layer).split("\n")[0]
