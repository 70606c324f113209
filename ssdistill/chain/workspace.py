"""What the stages of one run share: the experiment, its pictures, the runs folder."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssdistill.chain.data_checks import FEW_IMAGES, check_data
from ssdistill.data.opening import open_source, open_stores
from ssdistill.data.recipes import RECIPES, ViewRecipe
from ssdistill.data.sources import Source
from ssdistill.data.store import Store
from ssdistill.data.views import eval_view, make_view
from ssdistill.errors import UserError
from ssdistill.evaluate.features import extract
from ssdistill.experiment import Experiment
from ssdistill.files import write_atomically
from ssdistill.models.artifacts import load
from ssdistill.models.backbones import Encoder, EncoderSettings, build_encoder
from ssdistill.registry import METHODS, TEACHERS
from ssdistill.sections import NetworkSettings
from ssdistill.settings import Settings
from ssdistill.stages import Stage
from ssdistill.teachers import Pictures
from ssdistill.train.fabric import build_fabric

MODEL = "model"
"""Folder, inside a stage's, of the encoder it made."""
FILLED_UP = 16
"""Views that steps of compression get of fewer than ``FEW_IMAGES`` training images."""


@dataclass
class Workspace:
    """Everything a stage may look at.

    Attributes:
        experiment: what is run.
        root: the runs folder.
        source: where the pictures come from.
        train, test: the pictures, decoded.
        classes: one line about the classes; None where no label is read.
        warnings: what is probably wrong with the pictures, one line each.
    """

    experiment: Experiment
    root: Path
    source: Source
    train: Store
    test: Store
    classes: str | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def image_size(self) -> int:
        """Side of the images, in pixels."""
        return self.train.images.shape[1]

    @property
    def device(self) -> torch.device:
        """Where networks run."""
        return build_fabric(self.experiment.device.accelerator).device

    @property
    def pictures(self) -> Pictures:
        """What a teacher from elsewhere must know of the images."""
        return Pictures(self.image_size, self.train.mean, self.train.std)

    @cached_property
    def load_configs(self) -> dict[str, dict[str, Any]]:
        """By role, what decides which weights a teacher from elsewhere has.

        Cached: finding out means reading its files.

        Raises:
            UserError: a file that is not there.
        """
        configs = {}
        for role, settings in self._from_elsewhere.items():
            with self._naming(role):
                identity = TEACHERS.build(settings).identity()
            config = {"teacher": settings.model_dump(mode="json"), "identity": identity}
            configs[role] = config | {"pictures": asdict(self.pictures)}
        return configs

    def teachers(self) -> dict[str, Encoder]:
        """Every teacher by its row's name, to be looked at: those to be trained are untrained."""
        found = {}
        for role in self.experiment.all_teachers:
            if role in self._loaded:
                found[role] = self._loaded[role]
                continue
            network, method = self.experiment.pretrained[role]
            found[role] = self.build(network)
            found[role].projector = METHODS.build(method, found[role]).projector
        return found

    @cached_property
    def _loaded(self) -> dict[str, Encoder]:
        loaded = {}
        for role, settings in self._from_elsewhere.items():
            with self._naming(role):
                loaded[role], _ = TEACHERS.build(settings).load(self.pictures)
        return loaded

    @property
    def _from_elsewhere(self) -> dict[str, Settings]:
        experiment = self.experiment
        return {r: t for r, t in experiment.all_teachers.items() if r not in experiment.pretrained}

    @contextmanager
    def _naming(self, role: str) -> Iterator[None]:
        """What is wrong with one of several teachers is said of that one."""
        try:
            yield
        except UserError as error:
            if not self.experiment.teachers:
                raise
            name = f"teachers.{role.removeprefix('teacher_')}"
            raise UserError(f"{name}: {str(error).replace('teacher.', f'{name}.')}") from None

    def build(self, settings: EncoderSettings) -> Encoder:
        """A fresh encoder with the training images' statistics."""
        return build_encoder(settings, self.image_size, self.train.mean, self.train.std)

    def encoder(self, stage: Stage) -> Encoder:
        """The encoder a finished stage made, in eval mode."""
        # What it will see are views of this package.
        return load(stage.folder(self.root) / MODEL, check_inputs=False)

    def embeddings(self, encoder: Encoder) -> Tensor:
        """Embeddings (N, D) of all training images under the evaluation view.

        They are kept in the runs folder, by the encoder's weights.
        """
        digest = hashlib.sha256(encoder.spec.model_dump_json().encode())
        for tensor in encoder.net.state_dict().values():
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        name = f"{digest.hexdigest()[:16]}-{self.train.fingerprint[:8]}.npy"
        path = self.root / "embeddings" / name
        if not path.exists():
            found_ND = extract(encoder, self.train.images, self.image_size, device=self.device)
            path.parent.mkdir(parents=True, exist_ok=True)
            content = io.BytesIO()
            np.save(content, found_ND.numpy())
            write_atomically(path, content.getvalue())
        return torch.from_numpy(np.load(path))

    def images(self, n: int, seed: int) -> Tensor:
        """Evaluation views (n, 3, H, W) of distinct training images, chosen by ``seed``.

        Of fewer than ``FEW_IMAGES``, augmented views are added, up to ``FILLED_UP`` in all.
        """
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(self.train), generator=generator)[:n].sort().values
        pixels = torch.from_numpy(self.train.images[chosen.numpy()])
        views = [eval_view(pixels, self.image_size)]
        recipe = RECIPES[self.source.default_recipe or "weak"]
        while len(self.train) < FEW_IMAGES and len(chosen) * len(views) < min(n, FILLED_UP):
            draw = {"seed": seed, "epoch": 0, "index_B": chosen, "size": self.image_size}
            views.append(make_view(pixels, recipe, view=len(views), **draw))
        return torch.cat(views)[:n]


def open_workspace(experiment: Experiment, root: Path) -> Workspace:
    """Open the data (decoding it the first time) and check what can be checked before training.

    Raises:
        UserError: data that cannot be read, or that cannot serve what the experiment asks.
    """
    source = open_source(experiment.data)
    size = experiment.data.image_size or source.default_image_size
    stores = open_stores(source, experiment.data, size, root / "data")
    data = check_data(experiment, source, stores)
    workspace = Workspace(
        experiment, root, data.source, **stores, classes=data.classes, warnings=data.warnings
    )
    for network in (*experiment.all_teachers.values(), experiment.student):
        if isinstance(network, NetworkSettings):
            workspace.build(network.encoder)
    _check_batches(experiment, len(stores["train"]))
    try:
        build_fabric(experiment.device.accelerator)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"device.accelerator={experiment.device.accelerator}: {reason}") from error
    return workspace


def _check_batches(experiment: Experiment, num_images: int) -> None:
    trainings = {"pretrain": experiment.pretrain, "distill": experiment.distill}
    trainings |= {f"{role}.pretrain": m for role, (_, m) in experiment.pretrained.items()}
    for plan, steps in experiment.all_plans.items():
        key = f"plans.{plan}" if plan else "compress"
        trainings |= {f"{key}.{i}": step for i, step in enumerate(steps)}
    for row, settings in experiment.compare.items():
        method = getattr(settings, "pretrain", None)
        trainings[f"compare.{row}{'.pretrain' if method else ''}"] = method or settings
    large = [
        f"{key}.batch_size={settings.batch_size}"
        for key, settings in trainings.items()
        if getattr(settings, "batch_size", 0) > num_images
    ]
    if large:
        verb = "is" if len(large) == 1 else "are"
        raise UserError(
            f"{', '.join(large)} {verb} more than the {num_images} training images; set at most "
            f"{num_images}"
        )


def resolve_recipes(
    wanted: tuple[ViewRecipe, ...] | None, natural: tuple[str, ...], source: Source
) -> tuple[ViewRecipe, ...]:
    """The recipes ``wanted``, or else ``natural``, what the method asks for on natural images,
    unless the data has a recipe of its own.
    """
    return wanted or tuple(RECIPES[source.default_recipe or name] for name in natural)
