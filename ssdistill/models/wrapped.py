"""Any PyTorch module as a model that can be measured, compressed and exported."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ssdistill.errors import UserError
from ssdistill.models.model import Model
from ssdistill.models.own_net import described, embedding_in
from ssdistill.models.representation import Representation


def output_itself(net: nn.Module, x: Tensor) -> Tensor:
    """The embedding of a network that returns just that, as an ``embed`` of :class:`Wrapped`."""
    return net(x)


class Wrapped(Model):
    """Any module, such as a language model's encoder or a detector's backbone.

    Compression looks at three things of a network: its layers, inputs to run it on, and one
    vector per input that must stay as it is. :func:`ssdistill.encoder` makes one where it is
    given an ``example``.

    ```python
    model = ssdistill.encoder(transformers.BertModel(config), example=token_ids_BT)
    ```

    Args:
        net: the module; it is used, not copied.
        example: at least two inputs, stacked along the first axis: floats, or integers such as
            token ids. Compressed files take inputs of this type and shape, any number at once.
        embed: ``embed(net, inputs)`` gives the vectors (B, D), where ``net(inputs)`` is not
            how it is called; None for that call.
        name: what messages call it; by default its class.
        embedding: from what the module returns to the vectors (B, D); None for
            :func:`ssdistill.models.own_net.find_embedding`.

    Raises:
        UserError: fewer than two inputs, a compiled module, or no (B, D) tensor.
    """

    inputs: Tensor

    def __init__(
        self,
        net: nn.Module,
        example: Tensor,
        embed: Callable[[nn.Module, Tensor], Tensor] | None = None,
        name: str | None = None,
        embedding: Callable[[Any], Tensor] | None = None,
    ):
        super().__init__()
        self.net, self._embed, self._embedding = net, embed, embedding
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
        self.net.eval()
        try:
            return self._embedding_of(example[:2].to(self.device)).shape[1]
        finally:
            self.net.train(was_training)

    def _embedding_of(self, x: Tensor) -> Tensor:
        if self._embed is None:
            return embedding_in(self.net(x), self._embedding, self._name)
        embedding_BD = self._embed(self.net, x)
        if isinstance(embedding_BD, Tensor) and embedding_BD.ndim == 2:
            return embedding_BD
        returned = described(embedding_BD)
        raise UserError(f"{self._name}: embed must return a tensor (B, D), but returns {returned}")

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
        return Representation(self._embedding_of(x))
