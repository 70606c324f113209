"""Open external encoders by short name: ``timm:resnet18``, ``timm:resnet18@file.pth``."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ssdistill.errors import UserError, no_file
from ssdistill.files import user_path
from ssdistill.models.backbones import Encoder
from ssdistill.models.timm_net import check_timm_name
from ssdistill.settings import Size
from ssdistill.settings.registry import TEACHERS
from ssdistill.teachers import ImageSpec

KINDS = ("timm", "torchvision", "checkpoint")
"""Kinds of teachers that have short names."""
UNSEEN = ImageSpec(224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""What most networks were made for."""


@dataclass(frozen=True)
class NamedEncoder:
    """``KIND:NAME`` or ``KIND:NAME@FILE``, taken apart; see ``ssdistill list teachers``."""

    kind: str
    name: str
    file: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" + (f"@{self.file}" if self.file else "")

    @property
    def native_size(self) -> Size | None:
        """Size of the images it was made for; None for a checkpoint, which takes any.

        Raises:
            UserError: timm knows no such network; the nearest one is named.
        """
        import timm

        if self.kind == "checkpoint":
            return None
        if self.kind == "timm" and ":" not in self.name:
            try:
                check_timm_name(self.name)
            except UserError as error:
                raise UserError(f"{self}: {error}") from None
            config = timm.get_pretrained_cfg(self.name)
            return config.input_size[-1] if config else UNSEEN.image_size
        return UNSEEN.image_size

    def check(self) -> None:
        """Check what can be checked without opening it.

        Raises:
            UserError: no such file, or none where one is required.
        """
        if self.kind == "checkpoint" and not self.file:
            raise UserError(f"{self}: a file is required; write checkpoint:{self.name}@FILE")
        if self.file and not user_path(self.file).is_file():
            raise UserError(no_file(self))

    def load(
        self,
        image_spec: ImageSpec | None = None,
        image_size: Size | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> tuple[Encoder, Size, list[str]]:
        """The encoder in eval mode, the size of the images it takes, and notices.

        Args:
            image_spec: of the images it will see.
            image_size: of these; its own by default.
            mean, std: what a checkpoint's images were normalized by, where it is known.

        Raises:
            UserError: no such network or file, or weights that are not the network's.
        """
        self.check()
        spec = image_spec or UNSEEN
        size = image_size or self.native_size or spec.image_size
        settings = TEACHERS.schema(self.kind).model_validate(self._settings(mean, std))
        teacher = TEACHERS.build(settings)
        try:
            encoder, notices = teacher.load(ImageSpec(size, spec.mean, spec.std))
        except UserError as error:
            raise UserError(self._reworded(str(error))) from None
        return encoder, size, notices

    def _settings(
        self, mean: Sequence[float] | None, std: Sequence[float] | None
    ) -> dict[str, Any]:
        if self.kind == "checkpoint":
            encoder = {"name": self.name}
            return {"path": self.file, "encoder": encoder, "mean": mean, "std": std}
        if mean is not None:
            raise UserError(f"{self} stores its own mean and std; omit them")
        return {"name": self.name} | ({"weights": self.file} if self.file else {})

    def _reworded(self, message: str) -> str:
        """Reword the message of a teacher's settings for a short name."""
        message = message.replace("set teacher.weights=FILE", f"write {self.kind}:{self.name}@FILE")
        # A short name has no further settings.
        message = re.sub(r", or set teacher\.allow_\w+=true to \w+ them( randomly)?", "", message)
        message = message.replace("teacher.encoder.name", f"the name '{self.name}'")
        message = re.sub(r"teacher\.(name|weights|path)(: |=)", "", message)
        # The name ends with the file's.
        message = message.removeprefix(f"{self.file}: ") if self.file else message
        return message if str(self) in message else f"{self}: {message}"


def named_encoder(text: str) -> NamedEncoder | None:
    """``text`` taken apart; None where it is no short name."""
    kind, colon, rest = text.partition(":")
    if not colon or kind not in KINDS:
        return None
    name, _, file = rest.partition("@")
    return NamedEncoder(kind, name, file)
