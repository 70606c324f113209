"""Shared state of a run's stages: the experiment, its images, the runs folder."""

import copy
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ssdistill.artifacts.artifact import load
from ssdistill.artifacts.description import DESCRIPTION, read_description
from ssdistill.artifacts.files import description_sha256, read_checked
from ssdistill.chain.data_checks import FEW_IMAGES, check_data
from ssdistill.chain.process_group import Processes
from ssdistill.chain.remote_runs import RemoteRuns
from ssdistill.chain.requirements import check_device, check_networks
from ssdistill.chain.stage_files import read_array
from ssdistill.chain.stages import Stage
from ssdistill.chain.strategy_checks import check_strategy
from ssdistill.data.image_set import ImageSet
from ssdistill.data.opening import open_source, open_stores
from ssdistill.data.recipes import RECIPES
from ssdistill.data.recipes_of_images import suited
from ssdistill.data.splits import Source
from ssdistill.data.undecoded import known_stores
from ssdistill.data.views import eval_view, make_view
from ssdistill.errors import DamagedFile, UserError
from ssdistill.experiment.schema import Experiment
from ssdistill.files import write_atomically
from ssdistill.label_free.features import extract
from ssdistill.models.backbones import Encoder, EncoderSettings, EncoderSpec, build_encoder
from ssdistill.models.identity import encoder_sha256
from ssdistill.models.trial import REFUSALS, reason_of
from ssdistill.record.metrics_file import METRICS_FILE, metrics_sha256
from ssdistill.record.run import RUN_FILE
from ssdistill.record.wandb_environment import wandb_mode
from ssdistill.settings import Settings, Size, as_size
from ssdistill.settings.registry import METHODS, TEACHERS
from ssdistill.teachers import ImageSpec
from ssdistill.teachers.starting_weights import starting_statistics
from ssdistill.train.progress import console

MODEL = "model"
"""Folder, inside a stage's, of the encoder it made."""
FILLED_UP = 16
"""Views that steps of compression get of fewer than ``FEW_IMAGES`` training images."""


@dataclass
class Workspace:
    """Everything a stage may read.

    Attributes:
        experiment: what is run.
        root: the runs folder.
        source: where the images come from.
        train, test: the images, decoded.
        classes: one line about the classes; None where no label is read.
        warnings: what is probably wrong with the images, one line each.
        processes: those that share trainings, this one among them.
        remote: where the runs folder really is, if ``root`` stands for a remote one.
    """

    experiment: Experiment
    root: Path
    source: Source
    train: ImageSet
    test: ImageSet
    classes: str | None = None
    warnings: list[str] = field(default_factory=list)
    processes: Processes = field(default_factory=Processes)
    remote: RemoteRuns | None = None
    _specs: dict[str, EncoderSpec] = field(default_factory=dict)
    _built: dict[str, Encoder] = field(default_factory=dict)

    @property
    def image_size(self) -> Size:
        """Side of the images, in pixels, or their height and width."""
        return as_size(*self.train.images.shape[1:3])

    @property
    def device(self) -> torch.device:
        """Where networks run."""
        return self.processes.device_of_networks

    @property
    def image_spec(self) -> ImageSpec:
        """What an external teacher must know about the images."""
        return ImageSpec(self.image_size, self.train.mean, self.train.std)

    @cached_property
    def load_configs(self) -> dict[str, dict[str, Any]]:
        """Settings that determine the weights of each external teacher, by role.

        Cached: finding out means reading its files.

        Raises:
            UserError: a file that is not there.
        """
        configs = {}
        for role, settings in self._pretrained_teachers.items():
            with self._named_in_errors(role):
                identity = TEACHERS.build(settings).identity()
            config = {"teacher": settings.model_dump(mode="json"), "identity": identity}
            configs[role] = config | {"pictures": asdict(self.image_spec)}
        return configs

    def teachers(self) -> dict[str, Encoder]:
        """Every teacher by its row's name, to be looked at: those to be trained are untrained."""
        encoders = {}
        for role in self.experiment.all_teachers:
            if role in self._loaded:
                encoders[role] = self._loaded[role]
                continue
            network, method = self.experiment.pretrained[role]
            encoders[role] = self.build(network)
            encoders[role].projector = METHODS.build(method, encoders[role]).projector
        return encoders

    @cached_property
    def _loaded(self) -> dict[str, Encoder]:
        loaded = {}
        for role, settings in self._pretrained_teachers.items():
            with self._named_in_errors(role):
                loaded[role], _ = TEACHERS.build(settings).load(self.image_spec)
        return loaded

    @property
    def _pretrained_teachers(self) -> dict[str, Settings]:
        experiment = self.experiment
        return {r: t for r, t in experiment.all_teachers.items() if r not in experiment.pretrained}

    @contextmanager
    def _named_in_errors(self, role: str) -> Iterator[None]:
        """Name the teacher at fault if there are several."""
        try:
            yield
        except UserError as error:
            if not self.experiment.teachers:
                raise
            name = f"teachers.{role.removeprefix('teacher_')}"
            raise UserError(f"{name}: {str(error).replace('teacher.', f'{name}.')}") from None

    def build(self, settings: EncoderSettings) -> Encoder:
        """Build an encoder with the training images' statistics, for inspection only.

        Each network is built and tried once; see :meth:`forget_networks`.
        """
        key = settings.model_dump_json()
        if key not in self._built:
            statistics = starting_statistics(settings.weights, self.train.mean, self.train.std)
            self._built[key] = build_encoder(settings, self.image_size, *statistics)
        return copy.deepcopy(self._built[key])

    def forget_networks(self) -> None:
        """Free the networks that were built for inspection."""
        self._built.clear()

    def spec(self, settings: EncoderSettings) -> EncoderSpec:
        """The spec of that encoder; its network is built once."""
        key = settings.model_dump_json()
        if key not in self._specs:
            self._specs[key] = self.build(settings).spec
        return self._specs[key]

    def encoder(self, stage: Stage) -> Encoder:
        """The encoder a finished stage made, in eval mode.

        Raises:
            DamagedFile: it is not what the stage wrote.
            UserError: it cannot be opened.
        """
        folder = stage.folder(self.root) / MODEL
        try:
            # It will see views of this package; a runtime's file is called like an encoder.
            return cast("Encoder", load(folder, check_inputs=False))
        except UserError:
            self.check_finished(stage)
            raise  # whole, and refused for another reason: a runtime that is missing, say
        except (*REFUSALS, EOFError, OSError) as error:
            raise DamagedFile(folder, reason_of(error)) from error

    def check_finished(self, stage: Stage) -> None:
        """Check that a finished stage's weights are those it wrote.

        Other metrics than it wrote are told and no more: no training is repeated for a curve.

        Raises:
            DamagedFile: the weights are not, or their description.
        """
        folder, record = stage.folder(self.root), stage.written(self.root)
        if record.metrics_sha256 not in ("", metrics_sha256(folder)):
            console.print(
                f"warning: {folder / METRICS_FILE} has changed since the stage was finished; copy "
                f"it back, or move {folder} away to rerun the stage",
                style="yellow",
                markup=False,
            )
        # With a relative runs folder, older versions noted the whole path.
        for entry in record.artifacts.values():
            if Path(entry["file"]).name == MODEL:
                self._check_model(folder / MODEL, entry)

    def _check_model(self, folder: Path, entry: dict[str, Any]) -> None:
        try:
            description = read_description(folder)
            # Older versions recorded none of the description.
            if entry.get("description_sha256") not in (None, description_sha256(folder)):
                raise UserError(f"{folder / DESCRIPTION}: checksum mismatch")
            if description.sha256 != entry["sha256"]:
                raise UserError(f"{folder}: weights differ from those recorded in {RUN_FILE}")
            for name, sha256 in description.names.items():
                read_checked(folder / name, sha256)
        except UserError as error:
            raise DamagedFile(folder, error) from error
        except (*REFUSALS, OSError) as error:
            raise DamagedFile(folder, reason_of(error)) from error

    def embeddings(self, encoder: Encoder) -> Tensor:
        """Embeddings (N, D) of all training images under the evaluation view.

        They are kept in the runs folder, by the encoder's weights.
        """
        name = f"{encoder_sha256(encoder)[:16]}-{self.train.fingerprint[:8]}.npy"
        path = self.root / "embeddings" / name
        try:
            return torch.from_numpy(self._cached(path, encoder.embed_dim))
        except DamagedFile as error:
            if path.exists():
                console.print(f"  {path}: damaged ({error.reason}); recomputing it")
        images, where = self.train.images, {"device": self.device, "team": self.processes}
        embedding_ND = extract(encoder, images, self.image_size, **where)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        np.save(content, embedding_ND.numpy())
        write_atomically(path, content.getvalue())
        return embedding_ND

    def _cached(self, path: Path, embed_dim: int) -> np.ndarray:
        array_ND = read_array(path, 2, "f", len(self.train))
        if array_ND.shape[1] != embed_dim or not np.isfinite(array_ND).all():
            raise DamagedFile(path, f"shape {array_ND.shape}, or numbers that are not finite")
        return array_ND

    def images(self, n: int, seed: int) -> Tensor:
        """Evaluation views (n, C, H, W) of distinct training images, chosen by ``seed``.

        Of fewer than ``FEW_IMAGES``, augmented views are added, up to ``FILLED_UP`` in all.
        """
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(self.train), generator=generator)[:n].sort().values
        pixels = torch.from_numpy(self.train.images[chosen.numpy()])
        views = [eval_view(pixels, self.image_size)]
        recipe = suited(RECIPES[self.source.default_recipe or "weak"], self.train)
        while len(self.train) < FEW_IMAGES and len(chosen) * len(views) < min(n, FILLED_UP):
            draw = {"seed": seed, "epoch": 0, "index_B": chosen, "size": self.image_size}
            views.append(make_view(pixels, recipe, view=len(views), **draw))
        return torch.cat(views)[:n]


def open_workspace(
    experiment: Experiment,
    root: Path,
    *,
    decode: bool = True,
    processes: Processes | None = None,
) -> Workspace:
    """Open the data (decoding it the first time) and check what can be checked before training.

    Args:
        decode: without it, images never seen are :class:`ssdistill.data.undecoded.Undecoded`.
        processes: those that share trainings; None is this one.

    Raises:
        UserError: data that cannot be read, or that cannot serve what the experiment asks; W&B
            without a key; a runs folder that is a file.
    """
    if experiment.sweep is not None:
        raise UserError("sweep: this runs one experiment; use `ssdistill run`, or set sweep=null")
    check_device(experiment.device)
    check_strategy(experiment)
    wandb_mode(experiment.tracking)
    if root.exists() and not root.is_dir():
        raise UserError(f"--runs {root}: is a file; pass a folder")
    source = open_source(experiment.data)
    size = experiment.data.image_size or source.default_image_size
    opening = open_stores if decode else known_stores
    stores = opening(source, experiment.data, size, root / "data", experiment.device.workers)
    data = check_data(experiment, source, stores, labels=processes is None or processes.rank == 0)
    train, test = stores["train"], stores["test"]
    workspace = Workspace(experiment, root, data.source, train, test, data.classes, data.warnings)
    workspace.processes = processes or workspace.processes
    check_networks(workspace)
    return workspace
