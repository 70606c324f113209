"""Teachers pretrained or distilled by an earlier run."""

from pathlib import Path
from typing import Any

from ssdistill.artifacts.artifact import load_encoder
from ssdistill.artifacts.description import Description, read_description
from ssdistill.artifacts.files import ONNX_WEIGHTS, find_artifact
from ssdistill.errors import UserError
from ssdistill.models.backbones import Encoder
from ssdistill.settings import short_size
from ssdistill.teachers import ImageSpec, Teacher
from ssdistill.teachers.channels import check_channels
from ssdistill.teachers.sizes import fit_size, size_notices


class FinishedRun(Teacher):
    """Load the encoder of a finished run, with its pretraining projector.

    Images of another size than its training size are passed unchanged if its
    architecture allows that, and resized internally if its input size is fixed.

    Args:
        path: folder of a finished stage or of its model, or a file in that folder.
    """

    kind = "run"

    def __init__(self, *, path: str):
        self.path = path

    def identity(self) -> dict[str, Any]:
        _, description = self._find()
        projector = description.projector
        return {"sha256": description.sha256, "projector": projector and projector.sha256}

    def load(self, image_spec: ImageSpec) -> tuple[Encoder, list[str]]:
        folder, _ = self._find()
        encoder = load_encoder(folder)
        check_channels(encoder.spec.in_chans, image_spec, f"{folder}", "teacher.path")
        trained_size, image_size = encoder.spec.image_size, image_spec.image_size
        encoder.spec = encoder.spec.model_copy(update={"image_size": image_size})
        fit_size(encoder, trained_size)
        notices = size_notices(encoder)
        if trained_size != image_size and encoder.spec.input_size is None:
            notices.append(
                f"{encoder.spec.name} was trained on images of {short_size(trained_size)} pixels "
                f"but will receive {short_size(image_size)}"
            )
        return encoder, notices

    def trained_on(self) -> dict[str, Any] | None:
        folder, description = self._find()
        return description.trained_on(folder)

    def _find(self) -> tuple[Path, Description]:
        try:
            folder = find_artifact(self.path)
            description = read_description(folder)
        except UserError as error:
            raise UserError(f"teacher.path: {error}") from None
        if description.weights == ONNX_WEIGHTS:
            raise UserError(
                f"teacher.path: {folder} holds an ONNX model, which has no feature maps or "
                "gradients: specify the PyTorch model it was exported from"
            )
        return folder, description
