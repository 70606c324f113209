"""TensorBoard as a logger; an optional extra."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssdistill.errors import UserError


class TensorboardLogger:
    """Event files in ``tensorboard/`` of the run's folder.

    A resumed run adds a file. It tells TensorBoard to forget, of the files before, the steps
    from the checkpoint on, which it repeats; steps that no file holds are written again.
    """

    name = "tensorboard"

    def __init__(self, folder: Path, config: dict[str, Any]):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                f"tracking.tensorboard=true requires tensorboard ({error}): "
                "pip install 'ssdistill[tensorboard]'"
            ) from error
        self._folder, self._config = folder / "tensorboard", config
        self._open_writer, self._opened = SummaryWriter, None

    @property
    def _writer(self) -> Any:
        if self._opened is None:
            self._open(purge_step=None)
        return self._opened

    def _open(self, purge_step: int | None) -> None:
        self._opened = self._open_writer(str(self._folder), purge_step=purge_step)
        self._text("config", self._config)

    def catch_up(self, lines: Sequence[Mapping[str, Any]], step: int | None) -> None:
        is_new = not any(self._folder.glob("events.out.tfevents.*"))
        self._open(purge_step=None if is_new else step)
        for line in lines if is_new else ():
            metrics = {k: v for k, v in line.items() if k not in ("step", "epoch")}
            self.log(line["step"], {k: v for k, v in metrics.items() if v is not None}, None)

    def _text(self, tag: str, content: dict[str, Any]) -> None:
        text = json.dumps(content, indent=1, default=str)
        self._writer.add_text(tag, "\n".join("    " + line for line in text.splitlines()))

    def log(self, step: int, metrics: Mapping[str, float], epoch: int | None) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def log_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        for name, image_HWC in images.items():
            self._writer.add_image(name, image_HWC, step, dataformats="HWC")

    def log_model(self, name: str, files: Sequence[Path], lineage: dict[str, Any]) -> None:
        self._text(f"model/{name}", {"files": [file.name for file in files], **lineage})

    def finish(self, status: str, metrics: Mapping[str, float]) -> None:
        self._text("final", {"status": status, **metrics})
        self._writer.close()
