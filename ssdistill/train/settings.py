"""Settings shared by all training runs."""

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from ssdistill.data.recipes import ViewRecipe, resolve_recipe
from ssdistill.errors import not_one_of
from ssdistill.settings import NonNegativeInt, OpenFraction, Positive, PositiveInt, Settings
from ssdistill.train.optim import OptimSettings

Recipes = Annotated[tuple[ViewRecipe, ...], Field(min_length=1)]


def _named_recipes(views: Any) -> Any:
    """Replace named entries by their recipes."""
    if views == "auto":
        return None
    if not isinstance(views, list | tuple):
        return views
    return [resolve_recipe(view) for view in views]


class TrainSettings(Settings):
    """Length, batches, views and optimizer of one training run.

    Args:
        steps: optimizer steps; give this or ``epochs``.
        epochs: passes over the images, which fix the steps.
        batch_size: images a step; every image is seen once per view.
        views: one recipe (a name or its settings) per view, or ``{recipe: name, …}`` for a named
            one with changes; ``auto``, or nothing, takes what suits the data and the method.
        optim: the optimizer.
        seed: fix the seed of this stage, so that all of the experiment's seeds share it.
        select: the weights to keep: ``last``, or those that did best on unlabeled training
            images: by ``rankme``, the metric ``collapse/effective_rank`` (arXiv:2210.02885), or
            by ``lidar``, the rank of what tells images apart (arXiv:2312.04000).
        select_every: fraction of the training between two measurements.
        microbatch: images that a network encodes at a time, for batches that do not fit the
            device: the step is that of the whole batch, but batch norms in the networks see one
            micro-batch, and the encoder runs forward twice (GradCache, arXiv:2101.06983);
            null encodes the batch at once.
        accumulate: parts of a batch whose gradients are added up for one step; for losses that
            are means over images (``ssdistill list``). All batch norms see one part.
        extend: folder of a finished stage, trained with ``keep_checkpoints: true`` and the same
            settings, which this training goes on with for more steps; schedules are those of the
            whole length.
    """

    steps: PositiveInt | None = None
    epochs: Positive | None = None
    batch_size: PositiveInt = 256
    views: Annotated[Recipes | None, BeforeValidator(_named_recipes)] = None
    optim: OptimSettings = OptimSettings()
    seed: NonNegativeInt | None = None
    select: Literal["last", "rankme", "lidar"] = "last"
    select_every: OpenFraction = 0.05
    microbatch: PositiveInt | None = None
    accumulate: PositiveInt = 1
    extend: str | None = None

    @model_validator(mode="after")
    def _check_length(self) -> "TrainSettings":
        if problem := not_one_of({"steps": self.steps, "epochs": self.epochs}):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _parts_of_a_batch(self) -> "TrainSettings":
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"accumulate={self.accumulate} exceeds batch_size={self.batch_size}; lower it"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_idle_settings(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # What selects or cuts nothing must not tell one stage from another.
        idle = ("select", "select_every") if self.select == "last" else ()
        idle += ("microbatch",) if self.microbatch is None else ()
        idle += ("accumulate",) if self.accumulate == 1 else ()
        idle += ("extend",) if self.extend is None else ()
        return {name: value for name, value in handler(self).items() if name not in idle}

    def num_steps(self, steps_per_epoch: int) -> int:
        """Return the optimizer steps of the whole training run."""
        return self.steps or max(1, round((self.epochs or 0) * steps_per_epoch))


class ResourceSettings(Settings):
    """What one stage reserves on a node of a cluster (``--on``).

    Args:
        cpus: CPU cores; they are also the threads of torch unless ``device.threads`` is set.
        gpus: GPUs, or a fraction of one; null is one where ``device.accelerator`` is a GPU, or is
            ``auto`` and the cluster has some.
        memory: GB of main memory; null reserves none.
    """

    cpus: Annotated[int, Field(gt=0, le=1024)] = 1
    gpus: Annotated[float, Field(ge=0, le=1024)] | None = None
    memory: Positive | None = None


class DeviceSettings(Settings):
    """Device and number format of training, in Lightning Fabric's terms.

    Args:
        accelerator: ``auto``, ``cpu``, ``cuda``, ``mps``, …
        devices: processes on each node, one per device, that share every batch; null is one, or
            as many as ``torchrun`` or ``srun`` started.
        num_nodes: machines, each running the same command.
        strategy: ``ddp``, every process has all networks; or ``fsdp``, the weights of frozen
            teachers are shared out among the processes (arXiv:2304.11277).
        sync_batchnorm: whether several processes normalize by the statistics of the whole batch,
            as one process does, or each by those of its own part.
        precision: ``fp32``, ``bf16``, or ``fp16`` with loss scaling; ``auto`` measures the first
            two and takes the faster.
        memory_format: likewise.
        compile: compile the encoders (pays off in runs of more than about ten minutes).
        checkpoint_activations: keep of each block of the trained encoder only its input, and
            compute the rest again in the backward pass: less memory, about a third more time.
        threads: CPU threads torch may use, at most 1024; null leaves torch's choice.
        workers: threads that read and decode originals, at most 1024; null takes one a core.
        prefetch: batches that are read before they are wanted, and held in memory.
        resources: of one stage on a cluster.
    """

    accelerator: str = "auto"
    devices: Annotated[int, Field(gt=0, le=1024)] | None = None
    num_nodes: Annotated[int, Field(gt=0, le=65536)] = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"
    sync_batchnorm: bool = True
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    compile: bool = False
    checkpoint_activations: bool = False
    threads: Annotated[int, Field(gt=0, le=1024)] | None = None
    workers: Annotated[int, Field(gt=0, le=1024)] | None = None
    prefetch: Annotated[int, Field(gt=0, le=64)] = 2
    resources: ResourceSettings = ResourceSettings()

    @model_validator(mode="after")
    def _compiled_or_recomputed(self) -> "DeviceSettings":
        if self.compile and self.checkpoint_activations:
            raise ValueError("compile and checkpoint_activations are both true; set one to false")
        return self
