"""Do once what is the same in every case (imports, exports), and skip what nobody reads."""

import functools
import os
from pathlib import Path
from typing import Any


@functools.cache
def import_everything() -> None:
    """So that a child needs to import nothing; a parent with running threads must not fork."""
    import torch

    torch.set_num_threads(1)
    os.environ["WANDB_MODE"] = "disabled"
    os.environ["HF_HUB_OFFLINE"] = "1"
    import onnxruntime  # noqa: F401
    import onnxscript  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import torchvision  # noqa: F401

    import ssdistill.chain.run
    import ssdistill.commands.main
    import ssdistill.experiment.reading  # noqa: F401
    from ssdistill.settings.registry import LOSSES, METHODS, PROTOCOLS, SOURCES, STEPS, TEACHERS

    for registry in (LOSSES, METHODS, PROTOCOLS, SOURCES, STEPS, TEACHERS):
        _ = registry.classes
    _time_once()
    _compress_pictures_little()


def share_exports(folder: Path) -> None:
    """Encoders of the same weights are written for ONNX Runtime once for all cases.

    The export takes ten times as long as all else: a kill would rarely meet anything else.
    """
    from ssdistill.artifacts.runtimes import onnx_cache as lent

    folder.mkdir(parents=True, exist_ok=True)
    lent._caches[:] = [_ExportCache(folder)]


class _ExportCache:
    """The files of all children."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, encoder: Any) -> Path:
        from ssdistill.artifacts.runtimes import onnx_cache as lent

        path = self.folder / f"{lent._identity(encoder)[:24]}.onnx"
        if not path.exists():
            new = path.with_suffix(f".{os.getpid()}")
            lent.export_onnx(encoder, new)
            new.rename(path)
        return path


def _time_once() -> None:
    """Latencies are measured in one round: here nobody reads them, and rounds take seconds."""
    from ssdistill.measure import latency

    whole = latency.time_in_turns

    @functools.wraps(whole)
    def one_round(calls, rounds, *more, **named):
        return whole(calls, 1, *more, **named)

    latency.time_in_turns = one_round


def _compress_pictures_little() -> None:
    """Nobody looks at the images of the page either."""
    from PIL import Image

    whole = Image.Image.save

    @functools.wraps(whole)
    def save(self, file, format=None, **options):
        if format == "PNG" and options.pop("optimize", False):
            options["compress_level"] = 1
        return whole(self, file, format, **options)

    Image.Image.save = save
