"""Unstructured pruning step: smaller files, no speed-up."""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from ssdistill.artifacts.coding.codes import Coded, Palette, Sparse
from ssdistill.artifacts.coding.file import current
from ssdistill.compress import Context, Step, StepSettings
from ssdistill.compress.codes import storage
from ssdistill.compress.codes.fake_quant import weights_of
from ssdistill.compress.codes.masks import Criterion, mask_of_pattern, score, top
from ssdistill.compress.preconditions import check_input_model
from ssdistill.compress.schedule import Schedule, between_rounds, fraction_reached
from ssdistill.errors import UserError, not_one_of
from ssdistill.measure.parameters import count_parameters
from ssdistill.models.model import Model
from ssdistill.settings import OpenFraction, Positive, PositiveInt

if TYPE_CHECKING:
    from ssdistill.settings.kinds.steps import ZerosSettings


class Zeros(Step):
    """Set the least important weights of convolutions, linear layers and embeddings to zero.

    This is for the file, which then stores the others and where they are: the network that is
    loaded from it multiplies by the zeros, as fast as before. That holds for an N:M pattern too
    on a CPU. What computes less is made by ``prune``.

    Exactly one of ``sparsity``, ``threshold`` and ``pattern`` says how many. Weights that were
    zero before count among them.

    Args:
        sparsity: fraction of the weights to be zero.
        threshold: zero what has a smaller score.
        pattern: ``[n, m]`` leaves the largest ``n`` of every ``m`` consecutive weights along the
            input channels (Mishra et al., 2021, arXiv:2104.08378, with 2 and 4).
        criterion: what the score of a weight is: its ``magnitude``; that divided by the mean
            (``l1``) or by the root mean square (``l2``) of its layer; or ``lamp``, its square
            divided by the sum of those that are no smaller in its layer (Lee et al., ICLR 2021,
            arXiv:2010.07611, eq. 4).
        scope: whether ``sparsity`` is that of all layers together or that of each.
        rounds: do it in so many rounds, with a training of ``recover`` between them.
        schedule: how the sparsity grows over the rounds: ``cubic`` is fast at first (Zhu and
            Gupta, 2017, arXiv:1710.01878).
        recover: settings of the ``recover`` step after every round but the last.
    """

    kind = "zeros"
    paper = "Han et al., NeurIPS 2015, arXiv:1506.02626"
    makes = "zeroed"

    def __init__(
        self,
        *,
        sparsity: OpenFraction | None = None,
        threshold: Positive | None = None,
        pattern: Annotated[list[PositiveInt], Field(min_length=2, max_length=2)] | None = None,
        criterion: Criterion = "magnitude",
        scope: Literal["global", "layer"] = "global",
        rounds: PositiveInt = 1,
        schedule: Schedule = "cubic",
        recover: dict[str, Any] | None = None,
    ):
        goals = {"sparsity": sparsity, "threshold": threshold, "pattern": pattern}
        if problem := not_one_of(goals):
            raise UserError(f"zeros: {problem}")
        if sparsity is not None and not 0 < sparsity < 1:
            raise UserError(f"zeros.sparsity={sparsity}: must be a fraction between 0 and 1")
        if pattern is not None and not 0 < pattern[0] < pattern[1]:
            raise UserError(
                f"zeros.pattern={list(pattern)}: [n, m] keeps n of every m weights, so n must be "
                "less than m"
            )
        if rounds > 1:
            raise UserError("zeros: rounds above 1 must be expanded into steps: call Zeros.expand")
        self.sparsity, self.threshold, self.pattern = sparsity, threshold, pattern
        self.criterion: Criterion = criterion
        self.scope = scope

    @classmethod
    def expand(cls, settings: "ZerosSettings") -> list[StepSettings]:
        """The rounds, and between them the ``recover`` steps.

        Raises:
            UserError: rounds without ``sparsity`` or ``recover``, or settings that no ``recover``
                step has.
        """
        if settings.rounds == 1 and settings.recover is None:
            return [settings]
        if settings.sparsity is None or settings.recover is None or settings.rounds == 1:
            raise UserError(
                "zeros: rounds above 1 require sparsity, and recover to train between them"
            )
        (between,) = between_rounds(settings)
        steps: list[StepSettings] = []
        for number in range(1, settings.rounds + 1):
            fraction = settings.sparsity * fraction_reached(
                settings.schedule, number / settings.rounds
            )
            one_round = {"rounds": 1, "recover": None, "sparsity": fraction, "gate": None}
            steps += [settings.model_copy(update=one_round), between]
        final_round = {"rounds": 1, "recover": None}
        return [*steps[:-2], settings.model_copy(update=final_round)]

    @classmethod
    def row(cls, settings: "ZerosSettings") -> str:
        if settings.pattern:
            return f"{cls.makes}_{settings.pattern[0]}of{settings.pattern[1]}"
        if settings.sparsity is None:
            return f"{cls.makes}_below_{settings.threshold:g}"
        return f"{cls.makes}_{100 * settings.sparsity:.0f}"

    @torch.no_grad()
    def apply(self, model: Model, context: Context) -> Model:
        """A copy of ``model`` with zeros, and with ``coded`` that says where.

        ``context.record`` receives ``sparsity`` (fraction of zeros in the ``layers`` it looked at),
        ``parameters_nonzero`` (of the whole network), ``bytes_fixed`` and ``bytes_entropy`` (of
        the file, without and with Huffman's code) and ``speed``.

        Raises:
            UserError: a file for a runtime, weights that are not finite, nothing to set to zero,
                or a layer of which nothing would be left.
        """
        check_input_model(self.kind, model)
        layers = {key: layer.weight for key, layer in weights_of(model.net).items()}
        keep = self._keep_masks(layers, model.name)
        sparse = copy.deepcopy(model)
        for key, alias in storage.names(sparse.net, keep).items():
            sparse.net.get_parameter(key).masked_fill_(~keep[alias], 0.0)
        current_codes = current(model.net.state_dict(), model.coded)
        for key, alias in storage.names(sparse.net, keep).items():
            if not keep[alias].all():
                weight = sparse.net.get_parameter(key).detach().cpu()
                sparse.coded[key] = _sparse(current_codes.get(key), weight, keep[alias].cpu())
        storage.report(sparse, context)
        numbers = sum(mask.numel() for mask in keep.values())
        context.record.update(
            sparsity=1 - sum(int(mask.sum()) for mask in keep.values()) / numbers,
            layers=sum(not mask.all() for mask in keep.values()),
            parameters_nonzero=count_parameters(sparse, nonzero=True),
        )
        return sparse

    def _keep_masks(self, layers: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
        """Bool masks of the weights that stay."""
        if self.pattern:
            keep = {key: mask_of_pattern(weight, *self.pattern) for key, weight in layers.items()}
        else:
            scores = {key: score(weight, self.criterion) for key, weight in layers.items()}
            keep = self._best(scores)
        keep = {key: mask & (layers[key] != 0) for key, mask in keep.items()}
        if all(mask.all() for mask in keep.values()):
            raise UserError(f"zeros: no weight of '{name}' would become zero; remove more")
        for key, mask in keep.items():
            if not mask.any():
                raise UserError(
                    f"zeros: '{key}' of '{name}' would lose all its weights; remove fewer, or set "
                    "scope=layer or criterion=lamp"
                )
        return keep

    def _best(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.threshold is not None:
            return {key: values >= self.threshold for key, values in scores.items()}
        sparsity = cast("float", self.sparsity)  # without threshold and pattern it is set
        if self.scope == "layer":
            return {key: top(values, sparsity) for key, values in scores.items()}
        together = top(torch.cat([values.flatten() for values in scores.values()]), sparsity)
        parts = together.split([values.numel() for values in scores.values()])
        return {k: part.view(scores[k].shape) for k, part in zip(scores, parts, strict=True)}


def _sparse(code: Coded | None, weight: Tensor, mask: Tensor) -> Sparse:
    """The code of ``weight``, with the codebook that it had before it had zeros."""
    if isinstance(code, Palette):
        return Sparse(mask, code.codebook, code.index[mask])
    if isinstance(code, Sparse) and code.index is not None:
        return Sparse(mask, code.values, code.index[mask[code.mask]])
    return Sparse(mask, weight[mask])


def zero_masks(model: Model) -> dict[str, Tensor]:
    """Where the weights are that may differ from zero, by state dict key of ``model.net``.

    Returns:
        bool masks of the weights' shapes; only for weights that a ``zeros`` step has made sparse
        and that still have the shape they had then.
    """
    state = model.net.state_dict()
    return {
        key: coded.mask
        for key, coded in model.coded.items()
        if isinstance(coded, Sparse) and key in state and tuple(state[key].shape) == coded.shape
    }
