"""Checks of calibration inputs before and of agreement after quantization."""

import torch
from torch import Tensor

from ssdistill.artifacts.runtimes import RuntimeModel
from ssdistill.errors import UserError
from ssdistill.label_free.agreement import LinearCKA, centered_cosine
from ssdistill.models.backbones import Encoder
from ssdistill.models.model import Model

BATCH = 32


def check_inputs(model: Model, inputs: Tensor) -> None:
    """Check that calibration inputs have the shape, type and range that the model takes.

    Raises:
        UserError: another shape or type than the model's example, or images outside [0, 1]: an
            encoder normalizes internally, and normalizing twice ruins every range.
    """
    example = model.example(2)
    input_shape, expected_shape = inputs.shape[1:], example.shape[1:]
    if input_shape != expected_shape or inputs.is_floating_point() != example.is_floating_point():
        raise UserError(
            f"quantize: calibration inputs are {inputs.dtype} of shape {tuple(input_shape)}, but "
            f"'{model.name}' takes {example.dtype} of shape {tuple(expected_shape)}; pass "
            "what it takes"
        )
    if isinstance(model, Encoder) and not (inputs.min() >= -0.01 and inputs.max() <= 1.01):
        raise UserError(
            f"quantize: calibration images must be in [0, 1], got {inputs.min():.2f} to "
            f"{inputs.max():.2f}: pass them unnormalized, '{model.name}' normalizes them itself"
        )


@torch.no_grad()
def agreement_of(model: Model, quantized: RuntimeModel, inputs: Tensor) -> dict[str, float]:
    """Measure the agreement between embeddings of a model and of its quantized version.

    Returns:
        ``cosine``: mean centered cosine; ``cosine_p01``: its 1 % quantile; ``cka``: debiased.
    """
    was_training = model.training
    model.eval()
    parts = inputs.to(model.device).split(BATCH)
    float_BD = torch.cat([model(part).embedding_BD for part in parts]).float()
    model.train(was_training)
    int8_BD = torch.cat([quantized(part).embedding_BD for part in parts]).float()
    cosine_B = centered_cosine(float_BD, int8_BD)
    cka = LinearCKA()
    cka.update(float_BD, int8_BD)
    return {
        "cosine": float(cosine_B.mean()),
        "cosine_p01": float(cosine_B.quantile(0.01)),
        "cka": cka.compute(),
    }
