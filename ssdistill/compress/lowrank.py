"""Low-rank factorization step."""

import copy
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import cast

from torch import Tensor

from ssdistill.compress import Context, Step
from ssdistill.compress.factors.decompose import Method, decompose_after
from ssdistill.compress.factors.factorize import (
    factorized,
    options_within_latency,
    out_of_reach,
    replace,
    verify,
)
from ssdistill.compress.factors.moments import (
    Moments,
    Positions,
    called_layers,
    evaluating,
    joint_stats,
    output_stats,
)
from ssdistill.compress.factors.ranks import (
    Choices,
    Option,
    best_within_fraction,
    cheapest_with_energy,
    list_choices,
    most_saved,
    options_saving,
)
from ssdistill.compress.preconditions import check_input_model
from ssdistill.errors import UserError, nearest, not_one_of
from ssdistill.measure.macs import count_macs
from ssdistill.measure.parameters import count_parameters
from ssdistill.models.backbones import Encoder
from ssdistill.models.model import Model
from ssdistill.settings import OpenFraction, PositiveInt


class LowRank(Step):
    """Low-rank factorization of convolutions and linear layers, in closed form.

    Exactly one of ``energy``, ``keep``, ``macs``, ``parameters``, ``bytes`` and ``latency`` says
    how far to go. The last four spread the loss over the whole network: rank after rank goes
    where the least energy is lost for what it saves. A layer is factorized only where that gives
    both fewer parameters and fewer MACs; layers with groups (depthwise ones too) never are. The
    two or three layers that replace one take longer than their MACs promise: that is what
    ``latency`` and a gate are for.

    Args:
        method: ``data`` keeps the principal components of what each layer puts out on unlabeled
            inputs (Zhang et al., TPAMI 2016, arXiv:1505.06798) and loses far less than the
            others, which look at the weights alone: ``svd``; ``spatial``, vertical and
            horizontal kernels (Jaderberg et al., BMVC 2014, arXiv:1405.3866); ``tucker``, a
            small kernel between two 1x1 ones (Kim et al., ICLR 2016, arXiv:1511.06530).
        energy: fraction of every layer's energy to keep at least: of the variance of its outputs
            for ``data``, of the squared singular values of its weight for the others.
        keep: fraction of every layer's weights to keep at most.
        macs: fraction of the network's multiply-accumulates to keep at most.
        parameters: fraction of the network's parameters to keep at most.
        bytes: fraction of the bytes of the network's tensors to keep at most; a weight that was
            stored in few bits is stored raw once it is factorized.
        latency: fraction of the time for one input to keep at most, in ONNX Runtime on one thread:
            the largest fraction of the MACs is sought that measures so.
        layers: names of the layers that may be factorized, as patterns such as ``blocks.*``.
        exclude: names of layers that must not, as patterns.
        round_to: ranks are multiples of this.
        compensate: for ``data``, fit each layer to what the whole network had there, so that
            it makes up for the layers before it; runs the network twice for every layer.
        images: unlabeled inputs for ``data``.
        seed: which inputs those are.
    """

    kind = "lowrank"
    paper = "Zhang et al., TPAMI 2016, arXiv:1505.06798"
    makes = "factorized"
    reshapes = True

    def __init__(
        self,
        *,
        method: Method = "data",
        energy: OpenFraction | None = None,
        keep: OpenFraction | None = None,
        macs: OpenFraction | None = None,
        parameters: OpenFraction | None = None,
        bytes: OpenFraction | None = None,
        latency: OpenFraction | None = None,
        layers: tuple[str, ...] = ("*",),
        exclude: tuple[str, ...] = (),
        round_to: PositiveInt = 8,
        compensate: bool = False,
        images: PositiveInt = 256,
        seed: int = 0,
    ):
        goals = {
            "energy": energy,
            "keep": keep,
            "macs": macs,
            "parameters": parameters,
            "bytes": bytes,
            "latency": latency,
        }
        chosen_goals = [(key, value) for key, value in goals.items() if value is not None]
        if problem := not_one_of(goals):
            raise UserError(f"lowrank: {problem}")
        if compensate and method != "data":
            raise UserError(f"lowrank: compensate requires method=data, got method={method}")
        ((self.goal, self.fraction),) = chosen_goals
        self.method: Method = method
        self.layers, self.exclude = layers, exclude
        self.round_to, self.compensate = round_to, compensate
        self.images, self.seed = images, seed

    def apply(self, model: Model, context: Context) -> Model:
        """A copy of ``model`` in which the layers that pay are factorized.

        ``context.record`` receives ``method``, ``layers`` (how many of how many candidates were
        factorized), ``energy`` (what the factorized layers keep on average), and the parameters
        and MACs before and after.

        Raises:
            UserError: weights that are not finite, no layer to factorize, none for which it
                pays, or a budget out of reach.
        """
        check_input_model(self.kind, model)
        result = copy.deepcopy(model)
        if isinstance(result, Encoder):
            result.set_taps(())
        with evaluating(model, result):
            result = self._factorize(model, result, context)
            if isinstance(model, Encoder):
                result.set_taps(model.taps)
            verify(model, result)
            context.record.update(
                parameters_before=count_parameters(model),
                parameters_after=count_parameters(result),
                macs_before=count_macs(model),
                macs_after=count_macs(result),
            )
        result.train(model.training)
        for name, part in model.net.named_modules():
            result.net.get_submodule(name).train(part.training)
        return result

    def _factorize(self, model: Model, result: Model, context: Context) -> Model:
        """``result``, a copy of ``model``, with factors; all are in eval mode."""
        inputs = context.images(self.images, self.seed) if self.method == "data" else None
        places = self._candidates(result)
        stats = {} if inputs is None else output_stats(result, inputs, places)
        choices = {}
        for name in context.progress(list(places), "spectra of the layers"):
            layer, place = result.net.get_submodule(name), places[name]
            choices[name] = list_choices(layer, self.method, place, self.round_to, stats.get(name))
        if not any(layer.factors for layer in choices.values()):
            raise UserError(
                f"lowrank: no layer of '{model.name}' becomes cheaper at ranks that are "
                f"multiples of round_to={self.round_to}; lower round_to, or remove this step"
            )
        chosen = self._choose(result, choices, stats, context)
        chosen = {name: option for name, option in chosen.items() if option.rank is not None}
        if not chosen:
            raise UserError(self._no_saving(model, choices))
        context.record.update(
            method=self.method,
            layers=f"{len(chosen)}/{len(choices)}",
            energy=1 - sum(option.loss for option in chosen.values()) / len(chosen),
        )
        ranks = {name: o.rank for name, o in chosen.items() if o.rank is not None}
        if not self.compensate:
            return factorized(result, ranks, self.method, stats)
        # Only method=data compensates: it has inputs, and its ranks are single numbers.
        dense, inputs = copy.deepcopy(result), cast("Tensor", inputs)
        for name in context.progress(list(ranks), "factorize"):
            joint = joint_stats((dense, result), inputs, name)
            layer, rank = result.net.get_submodule(name), cast("int", ranks[name])
            replace(result, name, decompose_after(layer, rank, joint))
        return result

    def _candidates(self, model: Model) -> dict[str, Positions]:
        """Layers that may be factorized, in the order in which they are called."""
        places = called_layers(model)
        if not places:
            raise UserError(
                f"lowrank: '{model.name}' has no convolution or linear layer that can be "
                "factorized; remove this step"
            )
        for pattern in (*self.layers, *self.exclude):
            if not any(fnmatchcase(name, pattern) for name in places):
                known = {name[:end] for name in places for end in _prefix_ends(name)}
                raise UserError(
                    f"lowrank: no layer of '{model.name}' that can be factorized matches "
                    f"'{pattern}'{nearest(pattern.rstrip('.*'), sorted(known))}; correct the "
                    "pattern"
                )
        selected = {
            name: place
            for name, place in places.items()
            if any(fnmatchcase(name, pattern) for pattern in self.layers)
            and not any(fnmatchcase(name, pattern) for pattern in self.exclude)
        }
        if not selected:
            raise UserError(
                f"lowrank: exclude leaves no layer of '{model.name}' to factorize; exclude fewer"
            )
        return selected

    def _choose(
        self,
        model: Model,
        choices: Mapping[str, Choices],
        stats: Mapping[str, Moments],
        context: Context,
    ) -> dict[str, Option]:
        if self.goal == "energy":
            return {
                name: cheapest_with_energy(layer, self.fraction) for name, layer in choices.items()
            }
        if self.goal == "keep":
            return {
                name: best_within_fraction(layer, self.fraction) for name, layer in choices.items()
            }
        if self.goal == "latency":
            return options_within_latency(
                model, choices, self.method, stats, self.fraction, context
            )
        if self.goal == "macs":
            total, saved_at_most = count_macs(model), most_saved(choices, "macs")
        else:
            total, saved_at_most = count_parameters(model), most_saved(choices, "parameters")
        if self.goal == "bytes":
            # Buffers count as well, and of what is saved each number has as many bytes.
            weights = (cast("Tensor", model.net.get_submodule(name).weight) for name in choices)
            width = min(weight.element_size() for weight in weights)
            tensors = [*model.net.parameters(), *model.net.buffers()]
            total = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / width
        if total - saved_at_most > self.fraction * total:
            raise out_of_reach(model, self.goal, self.fraction, 1 - saved_at_most / total)
        key = "macs" if self.goal == "macs" else "parameters"
        return options_saving(choices, key, (1 - self.fraction) * total)

    def _no_saving(self, model: Model, choices: Mapping[str, Choices]) -> str:
        options = [(layer, option) for layer in choices.values() for option in layer.factors]
        if self.goal == "energy":
            best = max(1 - option.loss for _, option in options)
        else:
            best = min(o.cost.parameters / layer.dense.cost.parameters for layer, o in options)
        return (
            f"lowrank: no layer of '{model.name}' becomes cheaper at {self.goal}={self.fraction}; "
            f"the nearest is {best:.3f}"
        )


def _prefix_ends(name: str) -> list[int]:
    """End positions of the dotted prefixes of ``name``."""
    return [i for i, letter in enumerate(f"{name}.") if letter == "."]
