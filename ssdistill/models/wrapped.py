"""Any PyTorch module as a model that can be measured, compressed and exported."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ssdistill.errors import UserError
from ssdistill.models.model import Model
from ssdistill.models.representation import Representation


def output_itself(net: nn.Module, x: Tensor) -> Tensor:
    """The embedding of a network that returns just that."""
    return net(x)


class Wrapped(Model):
    """Any module, such as a language model's encoder or a detector's backbone.

    Compression looks at three things of a network: its layers, inputs to run it on, and one
    vector per input that must stay as it is.

    ```python
    bert = transformers.BertModel(config)
    model = Wrapped(bert, token_ids_BT, embed=lambda net, x_BT: net(x_BT).pooler_output)
    ```

    Args:
        net: the module; it is used, not copied.
        example: at least two inputs, stacked along the first axis: floats, or integers such as
            token ids. Compressed files take inputs of this type and shape, any number at once.
        embed: ``embed(net, inputs)`` gives the vectors (B, D); by default the module's output.
        name: what messages call it; by default its class.

    Raises:
        UserError: fewer than two inputs, a compiled module, or ``embed`` gives no (B, D) tensor.
    """

    inputs: Tensor

    def __init__(
        self,
        net: nn.Module,
        example: Tensor,
        embed: Callable[[nn.Module, Tensor], Tensor] = output_itself,
        name: str | None = None,
    ):
        super().__init__()
        self.net, self.embed = net, embed
        self._name = name or type(net).__name__
        if isinstance(net, torch.jit.ScriptModule):
            raise UserError(
                f"{self._name} is compiled TorchScript: wrap the original module instead"
            )
        if len(example) < 2:
            raise UserError(f"{self._name}: example needs at least two inputs, got {len(example)}")
        self.register_buffer("inputs", example.detach().clone(), persistent=False)
        self.embed_dim = self._look(example)
        # In a list it is no submodule: tensors without memory cannot follow the model around.
        self._fresh = [copy.deepcopy(net).to("meta")]

    @torch.no_grad()
    def _look(self, example: Tensor) -> int:
        was_training = self.net.training
        embedding_BD = self.embed(self.net.eval(), example[:2].to(self.device))
        self.net.train(was_training)
        if not isinstance(embedding_BD, Tensor) or embedding_BD.ndim != 2:
            returned = getattr(embedding_BD, "shape", type(embedding_BD).__name__)
            raise UserError(f"{self._name}: embed must return a (B, D) tensor, got {returned}")
        return embedding_BD.shape[1]

    @property
    def name(self) -> str:
        return self._name

    def example(self, count: int) -> Tensor:
        repeats = -(-count // len(self.inputs))
        return torch.cat([self.inputs] * repeats)[:count].to(self.device)

    def fresh_net(self) -> nn.Module:
        """As it was when it was wrapped; its tensors have shapes and no memory."""
        return copy.deepcopy(self._fresh[0])

    def set_taps(self, taps: tuple[str, ...]) -> None:
        """Reject any tap: wrapped modules have no feature maps.

        Raises:
            UserError: for any name.
        """
        if taps:
            raise UserError(
                f"{self._name} has no feature map '{taps[0]}': only encoders have feature maps"
            )

    def forward(self, x: Tensor) -> Representation:
        """Embed inputs of the example's type and shape.

        Returns:
            the embedding (B, embed_dim).
        """
        return Representation(self.embed(self.net, x))
