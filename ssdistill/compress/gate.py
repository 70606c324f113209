"""Acceptance thresholds of a compression step, measured without labels."""

from collections.abc import Mapping
from typing import Literal

from ssdistill.settings import Fraction, Positive, Settings


class Gate(Settings):
    """Thresholds for the result of a step, relative to the step's input model.

    Args:
        bytes: at most this fraction of the bytes on disk.
        latency: at most this fraction of the time for one input, in the same runtime.
        cka: at least this debiased CKA between the embeddings before and after.
        otherwise: ``refuse`` stops the run; ``keep`` goes on with the model as it was.
    """

    bytes: Positive | None = None
    latency: Positive | None = None
    cka: Fraction | None = None
    otherwise: Literal["refuse", "keep"] = "refuse"

    def complaints(self, measured: Mapping[str, float]) -> list[str]:
        """List violated thresholds as text; empty if the step passes.

        Args:
            measured: ``bytes`` and ``latency`` as fractions of those before, and ``cka``.
        """
        limits = {"bytes": self.bytes, "latency": self.latency}
        # "not <=" so that NaN fails as well.
        failures = [
            f"{name} ratio {measured[name]:.3f} exceeds gate.{name}={limit:g}"
            for name, limit in limits.items()
            if limit is not None and not measured[name] <= limit
        ]
        if self.cka is not None and not measured["cka"] >= self.cka:
            failures.append(
                f"CKA {measured['cka']:.3f} with the previous model is below gate.cka={self.cka:g}"
            )
        return failures
