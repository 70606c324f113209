"""Compare models with a reference: their cost as a fraction of its, their agreement with it."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from safetensors.torch import save
from torch import Tensor

from ssdistill.artifacts.runtimes.onnx_cache import float_onnx
from ssdistill.label_free.agreement import LinearCKA
from ssdistill.measure.before_after import embeddings
from ssdistill.measure.latency import paired_latency
from ssdistill.measure.macs import count_macs
from ssdistill.measure.parameters import count_parameters
from ssdistill.models.model import Model

RelativeCost = Callable[[Model], float]
"""Cost of a model as a fraction of the reference's."""


def weight_bytes(model: Model) -> int:
    """Bytes of the model's uncompressed ``model.safetensors``, header included."""
    layout = torch.contiguous_format
    state = model.net.state_dict()
    return len(save({k: v.detach().cpu().clone(memory_format=layout) for k, v in state.items()}))


@contextlib.contextmanager
def relative_cost(key: str, reference: Model) -> Iterator[RelativeCost]:
    """Yield ``cost(model)``, the cost of ``model`` as a fraction of that of ``reference``.

    Args:
        key: ``macs``, ``parameters``, ``bytes``, or ``latency``: the time for one input in ONNX
            Runtime on one thread, measured in turns with the reference.
    """
    if key == "latency":
        with float_onnx(reference) as dense:
            yield lambda model: _relative_latency(model, dense)
        return
    count = {"macs": count_macs, "parameters": count_parameters, "bytes": weight_bytes}[key]
    reference_cost = count(reference)
    yield lambda model: count(model) / reference_cost


def _relative_latency(model: Model, dense: object) -> float:
    with float_onnx(model) as candidate:
        return (
            1 / paired_latency(candidate, dense, model.example(1), batch_size=1, threads=1).speedup
        )


def cka_with(reference: Model, inputs: Tensor) -> Callable[[Model], float]:
    """Return ``cka(model)``, the debiased CKA with the embeddings of ``reference``.

    Args:
        inputs: unlabeled, at least four.
    """
    reference_ND = embeddings(reference, inputs)

    def cka(model: Model) -> float:
        agreement = LinearCKA()
        agreement.update(embeddings(model, inputs), reference_ND)
        return agreement.compute()

    return cka
