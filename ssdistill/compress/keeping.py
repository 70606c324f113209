"""Bisect a compression ratio to a CKA floor on unlabeled images."""

from collections.abc import Callable

from torch import Tensor

from ssdistill.compress import Context
from ssdistill.label_free.agreement import LinearCKA
from ssdistill.measure.before_after import embeddings
from ssdistill.models.model import Model

HALVINGS = 8
"""Bisections of the ratio: 1/256 is finer than any rounding of widths."""


def likeness_to(reference: Model, inputs: Tensor) -> Callable[[Model], float]:
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


def largest_ratio(
    floor: float,
    make: Callable[[float], Model],
    cka: Callable[[Model], float],
    context: Context,
) -> tuple[float, float]:
    """The largest ratio found whose model agrees at least as much as ``floor``, and its CKA.

    Bisection: agreement falls with the ratio closely enough, and whatever is returned has been
    measured to keep the floor.

    Args:
        make: the model after removing that ratio of what can be removed; 0 removes nothing.
        cka: of :func:`likeness_to`.
    """
    low, high, cka_at_low = 0.0, 1.0, cka(make(0.0))
    for _ in context.progress(range(HALVINGS), f"prune to a CKA of {floor:g}"):
        middle = (low + high) / 2
        cka_at_middle = cka(make(middle))
        # False for NaN.
        low, high, cka_at_low = (
            (middle, high, cka_at_middle) if cka_at_middle >= floor else (low, middle, cka_at_low)
        )
    return low, cka_at_low
