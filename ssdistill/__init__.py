"""ssdistill: distill, prune and quantize self-supervised vision encoders without labels.

Public names: :func:`encoder` makes one of any module; :func:`pretrain`, :func:`distill` and
:func:`compress` it; :func:`use_data` names images of a program; :func:`load` a saved encoder,
:func:`embed` images with it, :func:`probe` several; :func:`run` an experiment, :func:`reproduce`
its claims; :func:`register` and :func:`add_plugin` add kinds. Every protocol is a function of
:mod:`ssdistill.evaluate`, every loss one of :mod:`ssdistill.losses`. Modules are imported when
they are first used, so that
``import ssdistill`` alone takes no time.
"""

import os
import pkgutil
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ssdistill import moved
from ssdistill.callable_modules import make_callable

# OpenMP's threads spin while they wait. With anything else running on the machine that costs a
# training on a few cores most of its speed; asleep they cost it nothing. Has to be said
# before torch loads OpenMP, and leaves a choice of the user's alone.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

moved.install()
FUNCTIONS = {"encoder": "ssdistill.api.networks", "use_data": "ssdistill.api.data"}
"""Module of functions that are imported when they are first used."""
CALLED = ("pretrain", "distill", "compress")
"""Packages that are functions, too: those of :mod:`ssdistill.api.experiments`."""
make_callable(
    __name__,
    CALLED.__contains__,
    lambda name: getattr(import_module(f"{__name__}.api.experiments"), name),
)

if TYPE_CHECKING:
    # What is loaded when it is first used, as a type checker and an editor see it.
    from ssdistill import api as api
    from ssdistill import artifacts as artifacts
    from ssdistill import callable_modules as callable_modules
    from ssdistill import chain as chain
    from ssdistill import commands as commands
    from ssdistill import data as data
    from ssdistill import distributed as distributed
    from ssdistill import errors as errors
    from ssdistill import evaluate as evaluate
    from ssdistill import experiment as experiment
    from ssdistill import files as files
    from ssdistill import label_free as label_free
    from ssdistill import losses as losses
    from ssdistill import machine as machine
    from ssdistill import measure as measure
    from ssdistill import models as models
    from ssdistill import record as record
    from ssdistill import report as report
    from ssdistill import settings as settings
    from ssdistill import teachers as teachers
    from ssdistill import terminal as terminal
    from ssdistill import testing as testing
    from ssdistill import train as train
    from ssdistill.api.data import use_data as use_data
    from ssdistill.api.experiments import compress as compress
    from ssdistill.api.experiments import distill as distill
    from ssdistill.api.experiments import pretrain as pretrain
    from ssdistill.api.networks import encoder as encoder
    from ssdistill.artifacts.runtimes import RuntimeModel
    from ssdistill.chain.report import Report
    from ssdistill.evaluate.comparing.findings import Probed
    from ssdistill.evaluate.comparing.run import probe as probe
    from ssdistill.evaluate.embedding import embed as embed
    from ssdistill.label_free.embedding.embedded import Embedded
    from ssdistill.models.backbones import Encoder
    from ssdistill.report.verdict import Verdict

Kind = TypeVar("Kind")
Config = str | Path | Mapping[str, Any]
__version__ = version("ssdistill")
__all__ = [
    "__version__",
    "add_plugin",
    "compress",
    "distill",
    "embed",
    "encoder",
    "load",
    "pretrain",
    "probe",
    "register",
    "reproduce",
    "run",
    "use_data",
]


def add_plugin(name: str) -> None:
    """Import a package and add the losses, methods, steps, … that it defines, as ``--import`` does.

    Packages that are installed with an entry point of the group ``ssdistill.plugins`` are added
    by themselves.
    """
    from ssdistill.settings.adding import add_plugin as add

    add(name)


def register(cls: type[Kind]) -> type[Kind]:
    """Add a class with a ``kind`` that a script or a notebook defines; use it as a decorator.

    Raises:
        UserError: no loss, method, teacher, step, protocol, source or runtime; a kind that
            exists; a class without source.
    """
    from ssdistill.settings.adding import register as add

    return add(cls)


def load(path: str | Path, trust: bool = False) -> "Encoder | RuntimeModel":
    """The encoder in a folder: ``load(path)(x_BCHW).embedding_BD``.

    Images are uint8, or floats in [0, 1]. Opens what training, compression and export save; see
    :func:`ssdistill.artifacts.artifact.load`. Nothing in a folder is run. A ``model.aoti.pt2`` is
    native code, though, and has all rights of the process: one that was not compiled on this
    machine is refused without ``trust=True``.
    """
    from ssdistill.artifacts.artifact import load as load_artifact

    return load_artifact(path, trust=trust)


def run(
    config: "Config", *overrides: str, root: str | Path = "runs", on: str | None = None
) -> "Report":
    """Run an experiment, as ``ssdistill run config key=value … --on …`` does.

    ``config`` is a YAML file, the name of a packaged config, or a mapping of what a file would say.
    """
    from ssdistill.chain.executors.choice import executor_for
    from ssdistill.chain.run import run as run_experiment
    from ssdistill.experiment.reading import load_experiment

    experiment, _ = load_experiment(config, list(overrides))
    with executor_for(on) as executor:
        return run_experiment(experiment, root, executor)


def reproduce(
    config: "Config", *overrides: str, root: str | Path = "runs", on: str | None = None
) -> list["Verdict"]:
    """Run an experiment and verify its claims, as ``ssdistill reproduce`` does."""
    from ssdistill.chain.checks import require_claims
    from ssdistill.chain.executors.choice import executor_for
    from ssdistill.chain.run import run as run_experiment
    from ssdistill.experiment.reading import load_experiment

    experiment, _ = load_experiment(config, list(overrides))
    require_claims(experiment, "config" if isinstance(config, Mapping) else config)
    with executor_for(on) as executor:
        return run_experiment(experiment, root, executor).verdicts


if not TYPE_CHECKING:  # a checker sees the function itself, with every option

    def probe(
        models: Any, data: Any, protocols: Sequence[str] | None = None, **options: Any
    ) -> "Probed":
        """Evaluate encoders on labeled images, as ``ssdistill probe`` does.

        Args:
            models: one or several of: the folder of a saved model, an ``.onnx`` file,
                ``timm:NAME``, a network or a function of images; a mapping gives them names.
            data: kind of a source, an ``.npz`` file, a folder, a mapping of a source's settings, or
                ``((x_train, y_train), (x_test, y_test))``.
            protocols: names such as ``linear`` or ``knn``; by default those of a config.
            options: of :func:`ssdistill.evaluate.comparing.run.probe`.
        """
        from ssdistill.evaluate.comparing.run import probe as probe_models

        return probe_models(models, data, protocols, **options)

    def embed(
        model: Any, data: Any, out: str | Path | None = None, **options: Any
    ) -> "Embedded | tuple[Any, list[str]]":
        """Embed images, as ``ssdistill embed`` does; labels are never read.

        Args:
            model: the folder of a saved model, an ``.onnx`` file, ``timm:NAME``, an encoder, a
                network or a function of images (B, C, H, W) in [0, 1].
            data: kind of a source, a file, a folder, a mapping of a source's settings, or an array
                (N, H, W, C) of uint8 or of float32 in [0, 1].
            out: a file that ends in ``.npy``, ``.npz``, ``.parquet``, ``.csv`` or ``.safetensors``;
                None returns the array. The same call goes on where it was interrupted.
            layer: ``embedding`` (N, D); ``projection`` (N, P), by the projector of pretraining; or
                ``patch`` (N, T, D), tokens of a transformer or positions of the last map.
            split: ``train``, ``test`` or ``all``, training images first.
            normalize: divide each vector by its Euclidean length.
            half: float16 instead of float32.
            topk: also write this many nearest neighbors of each row by cosine similarity.
            batch_size: images encoded at a time; by default 64 on a CPU, 512 elsewhere.
            image_size: side of the images the encoder is given, in pixels, or height and width.
            mean, std: statistics that a bare ``.onnx`` file or a checkpoint expects.
            device, precision: where to encode, and in ``fp32`` or ``bf16``.
            data_settings: over those that ``data`` says.
            root: runs folder; decoded images are kept in ``data`` below it.
            force: replace files that exist; begin again where another call was interrupted.
            progress: a bar on the terminal.
            trust: open a model that is native code and was not compiled here.

        Returns:
            with ``out``, an object with ``path``, ``shape``, ``names`` and ``neighbors_path``;
            without, the array (N, D) or (N, T, D) and the N names of its images.

        Raises:
            UserError: anything that cannot be opened, encoded or written; a file that exists; an
                interrupted call with another model, data or options.
        """
        from ssdistill.evaluate.embedding import embed as embed_images

        return embed_images(model, data, out, **options)


def _modules() -> list[str]:
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return [name for name in names if not name.startswith("_")]


if not TYPE_CHECKING:  # else a type checker would accept any name

    def __getattr__(name: str) -> Any:
        """``ssdistill.evaluate`` and every other module, imported on first use."""
        if name in FUNCTIONS:
            return getattr(import_module(FUNCTIONS[name]), name)
        if name not in _modules() and name not in moved.MOVED:
            raise AttributeError(f"module 'ssdistill' has no attribute '{name}'")
        return import_module(f"ssdistill.{name}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_modules()})
