"""One use of a layer's weight, sampled, and what follows it up to the residual addition."""

from dataclasses import dataclass

from torch import Tensor, nn

from ssdistill.compress.fitting.arguments import NormArguments


@dataclass
class Call:
    """One use of a layer's weight, at a sample of the places of its output.

    The output y is followed to ``scale y + shift + stream`` through per-channel
    operations: a batch norm, a layer scale, and finally the residual addition.

    Attributes:
        x_NGK: input of every sample by group of the convolution (G = 1 elsewhere).
        y_NO: output of every sample.
        scale_O, shift_O: the affine map that follows.
        own: whether the added bias is the layer's own.
        stream_NO: the residual stream added after the map; None without an addition.
        norm: name of the batch norm that reads y directly.
        uses: how many operations read y.
        events: number of observations of this call, itself included.
    """

    x_NGK: Tensor | None
    y_NO: Tensor
    scale_O: Tensor
    shift_O: Tensor
    own: bool
    stream_NO: Tensor | None = None
    norm: str | None = None
    uses: int = 0
    events: int = 1

    @property
    def end_NO(self) -> Tensor:
        """Output after the affine map and the residual addition, in float64."""
        end_NO = self.scale_O * self.y_NO.double() + self.shift_O
        return end_NO if self.stream_NO is None else end_NO + self.stream_NO

    def apply_norm(self, norm: NormArguments) -> None:
        """Follow the output through a batch norm in eval mode."""
        scale_O = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale_O = scale_O * norm.weight
        self.scale_O = self.scale_O * scale_O
        self.shift_O = (self.shift_O - norm.running_mean) * scale_O
        if norm.bias is not None:
            self.shift_O = self.shift_O + norm.bias


def layers_of(net: nn.Module) -> dict[str, nn.Module]:
    """Convolutions and linear layers by name."""
    return {n: m for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
