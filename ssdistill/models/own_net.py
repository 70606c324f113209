"""A module of somebody else's behind the methods that an encoder calls."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ssdistill.errors import UserError, nearest
from ssdistill.models.examples import noise_images
from ssdistill.models.final_patches import token_grid
from ssdistill.models.operations import Operations, copied
from ssdistill.models.spec import EncoderSpec
from ssdistill.models.trial import refusing
from ssdistill.settings import height_width

POOLED = ("pooler_output", "embedding", "embeddings", "pooled", "x_norm_clstoken")
"""Attributes or keys in which models of transformers, DINOv2 and others return the embedding."""


class OwnNet(nn.Module):
    """Any module that turns images (B, C, H, W) into embeddings.

    Its keys begin with ``net.``, those of the module.

    Args:
        module: used, not copied.
        spec: of the encoder; it is tried on noise of the spec's size.
        embedding: of what the module returns; None for :func:`find_embedding`.
        taps: inner modules, or operations as :class:`ssdistill.models.operations.Operations`
            names them, by the name of a tap.

    Attributes:
        num_features: width of the embedding.
        feature_info: the taps, as timm's networks list their stages.

    Raises:
        UserError: an unknown module or operation, one whose output is no map, or no (B, D)
            embedding.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: EncoderSpec,
        embedding: Callable[[Any], Tensor] | None,
        taps: Mapping[str, str],
    ):
        super().__init__()
        self.net, self.tapped = module, dict(taps)
        self._embedding, self._name = embedding, spec.name
        modules = {name for name, _ in module.named_modules() if name}
        whole = modules.intersection(self.tapped.values())
        self.operations = Operations(module, whole) if {*self.tapped.values()} - whole else None
        for tap, inner in self.tapped.items():
            if inner not in modules:
                self._require_operation(tap, inner, modules)
        self.feature_info: list[dict[str, Any]] = [{"module": tap} for tap in self.tapped]
        self._look(spec)

    def _require_operation(self, tap: str, name: str, modules: set[str]) -> None:
        at = f"{self._name}: tap '{tap}'"
        for outer in self.tapped.values():
            if outer in modules and name.startswith(f"{outer}."):
                raise UserError(f"{at}: {name} is inside the tap {outer}; name operations for both")
        try:
            known = self.operations.names() if self.operations else []
        except UserError as error:
            remedy = f"no module '{name}'{nearest(name, modules)}"
            raise UserError(f"{at}: {remedy}; operations cannot be named: {error}") from None
        if name not in known:
            known = [*modules, *known]
            raise UserError(f"{at}: no module or operation '{name}'{nearest(name, known)}")

    @torch.no_grad()
    def _look(self, spec: EncoderSpec) -> None:
        was_training = self.net.training
        height, width = height_width(spec.size)
        images = noise_images(spec.model_copy(update={"image_size": spec.size}), 2)
        # Code of others may raise anything.
        with refusing(f"{spec.name} cannot encode images of {height}x{width}", Exception):
            self.net.eval()
            output, maps = self.forward_intermediates(images, range(len(self.tapped)))
            embedding_BD = self.forward_head(output)
        self.net.train(was_training)
        self._check_embedding(embedding_BD, len(images))
        self.num_features = embedding_BD.shape[1]
        for info, tapped in zip(self.feature_info, maps, strict=True):
            info["num_chs"] = tapped.shape[1]

    def _check_embedding(self, embedding_BD: Tensor, count: int) -> None:
        problem = ""
        if embedding_BD.dtype != torch.float32:
            problem = f"be float32, not {str(embedding_BD.dtype).removeprefix('torch.')}"
        elif embedding_BD.shape[0] != count:
            problem = f"have one row for each image, not {embedding_BD.shape[0]} for {count}"
        elif not embedding_BD.shape[1]:
            problem = "be wider than 0"
        elif not embedding_BD.isfinite().all():
            problem = "be finite; of noise it is NaN or infinite"
        if problem:
            raise UserError(f"{self._name}: the embedding must {problem}; change what it returns")

    def forward_features(self, x_BCHW: Tensor) -> Any:
        """What the module returns for normalized images."""
        return self.net(x_BCHW)

    def forward_intermediates(
        self, x_BCHW: Tensor, indices: Iterable[int], **_: Any
    ) -> tuple[Any, list[Tensor]]:
        """What the module returns, and the maps (B, C, H, W) of taps by number."""
        names = [list(self.tapped)[i] for i in indices]
        caught: dict[str, Any] = {}
        modules = dict(self.net.named_modules())
        hooks = [
            modules[self.tapped[name]].register_forward_hook(partial(_keep, caught, name))
            for name in names
            if self.tapped[name] in modules
        ]
        inside = {self.tapped[name] for name in names if self.tapped[name] not in modules}
        try:
            if self.operations is None or not inside:
                output = self.net(x_BCHW)
            else:
                output, values = self.operations.run(x_BCHW, inside)
                caught |= {n: values[self.tapped[n]] for n in names if self.tapped[n] in values}
        finally:
            for hook in hooks:
                hook.remove()
        missing = [name for name in names if name not in caught]
        if missing:
            raise UserError(
                f"{self._name}: tap '{missing[0]}': the module {self.tapped[missing[0]]} is not "
                "called for an image; choose another one"
            )
        ratio = x_BCHW.shape[2] / x_BCHW.shape[3]
        return output, [self._as_map(name, caught[name], ratio) for name in names]

    def forward_head(self, output: Any, pre_logits: bool = True) -> Tensor:
        """The embedding (B, num_features) of what the module returned."""
        return embedding_in(output, self._embedding, self._name)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x_BCHW))

    def _as_map(self, name: str, output: Any, ratio: float) -> Tensor:
        if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
            output = output[0]  # layers of transformers
        if isinstance(output, Tensor) and output.ndim == 4:
            return output
        if isinstance(output, Tensor) and output.ndim == 3:
            grid = token_grid(output.shape[1], ratio)
            if grid is not None:
                height, width = grid
                patches_BCN = output[:, -height * width :].mT
                return patches_BCN.unflatten(2, (height, width))
        raise UserError(
            f"{self._name}: tap '{name}': {self.tapped[name]} returns {described(output)}, no "
            "feature map (B, C, H, W) or tokens (B, N, C) of a grid; choose another module"
        )


def embedding_in(output: Any, embedding: Callable[[Any], Tensor] | None, name: str) -> Tensor:
    """The embedding (B, D) in what a module returned.

    Args:
        embedding: takes it out; None for :func:`find_embedding`.
        name: of the module, in messages.

    Raises:
        UserError: no tensor (B, D).
    """
    found = find_embedding(output) if embedding is None else embedding(output)
    if isinstance(found, Tensor) and found.ndim == 2:
        return found
    how = "embedding=… returns" if embedding is not None else "it returns"
    raise UserError(
        f"{name}: the embedding must be a tensor (B, D), but {how} {described(found)}; "
        "pass embedding=, a function of what the module returns"
    )


def find_embedding(output: Any) -> Any:
    """The embedding in what a module returned: itself, its pooled part, or the mean of a map."""
    for name in POOLED:
        value = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(value, Tensor):
            output = value
            break
    if isinstance(output, Tensor) and output.ndim == 4:
        return output.flatten(2).mean(2)
    return output


def _keep(
    caught: dict[str, Any], name: str, module: nn.Module, inputs: Sequence[Any], output: Any
) -> None:
    # What comes after may work in place.
    caught[name] = copied(output)


def described(value: Any) -> str:
    """What a module returned, for messages: its type, shape or names."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a dict with the keys {', '.join(map(str, value))}"
    names = (
        [name for name, item in vars(value).items() if isinstance(item, Tensor)]
        if hasattr(value, "__dict__")
        else []
    )
    inside = f" with the tensors {', '.join(names)}" if names else ""
    return f"a {type(value).__name__}{inside}"
