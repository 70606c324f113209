"""Losses over feature maps: pair maps of the student with maps of the teacher."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from einops import rearrange
from pydantic import Field
from torch import Tensor

from ssdistill.errors import nearest
from ssdistill.losses import Loss, Shapes
from ssdistill.models.final_patches import FINAL_PATCHES
from ssdistill.models.representation import Representation

MapChoice = Literal["last", "middle", "stages", "final"]
MapNames = Annotated[tuple[str | tuple[str, str], ...], Field(min_length=1)]
MAX_STAGES = 4
"""``maps: stages`` pairs at most as many; a vision transformer has one map per block."""

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class MapPair:
    """A student map and a teacher map by tap name, with their shapes (C, H, W)."""

    student: str
    teacher: str
    student_shape: Shape
    teacher_shape: Shape


def stages(maps: dict[str, Shape], count: int) -> list[str]:
    """Return ``count`` network stages spread evenly over the depth, including the deepest."""
    names = [name for name in maps if ":" not in name]
    return [names[-(-(i + 1) * len(names) // count) - 1] for i in range(count)]


class MapLoss(Loss):
    """Base class of losses that compare feature maps.

    ``maps`` names them: ``last`` (the deepest of both), ``middle`` (the stage at half depth),
    ``stages`` (up to four, evenly spread over the depth of each network), ``final`` (what each
    network pools: a transformer's patches behind its last norm), or a list of names,
    ``[layer2, [layer3, blocks.7]]``, a single name standing for both networks and a pair for
    student and teacher. A prefix, e.g. ``before_relu``, is that of names with a colon.

    A subclass passes ``maps`` on and finds the result in ``map_pairs``.

    Raises:
        UserError: a network without feature maps, or without the one named.
    """

    reads = "maps"
    prefix: ClassVar[str] = ""
    required: ClassVar[str] = "feature maps"
    """What a network without maps of that prefix lacks, for the message."""

    def __init__(self, shapes: Shapes, maps: MapChoice | MapNames):
        super().__init__(shapes)
        self.map_pairs = self._resolve(maps)
        self.student_taps = tuple(dict.fromkeys(pair.student for pair in self.map_pairs))
        self.teacher_taps = tuple(dict.fromkeys(pair.teacher for pair in self.map_pairs))

    def pairs_of(
        self, student: Representation, teacher: Representation
    ) -> list[tuple[Tensor, Tensor]]:
        """(student map, teacher map) of every pair, each (B, C, H, W)."""
        return [(student.maps[p.student], teacher.maps[p.teacher]) for p in self.map_pairs]

    def _resolve(self, maps: MapChoice | MapNames) -> list[MapPair]:
        if maps == "final":
            if self.prefix:
                raise self.fail(f"maps=final: it compares {self.required}; set maps=last")
            return [self._final_pair()]
        student_shapes, teacher_shapes = self._known("student"), self._known("teacher")
        if isinstance(maps, str):
            count = {"last": 1, "middle": 2, "stages": MAX_STAGES}[maps]
            count = min(count, len(student_shapes), len(teacher_shapes))
            names = list(
                zip(stages(student_shapes, count), stages(teacher_shapes, count), strict=True)
            )
            names = names[:1] if maps == "middle" else names
        else:
            names = [(name, name) if isinstance(name, str) else name for name in maps]
        return [
            MapPair(
                self._full_name("student", student_name, student_shapes),
                self._full_name("teacher", teacher_name, teacher_shapes),
                student_shapes[student_name],
                teacher_shapes[teacher_name],
            )
            for student_name, teacher_name in names
        ]

    def check_widths(self, pair: MapPair) -> None:
        """Refuse networks whose embedding is not as wide as the map that is compared.

        Raises:
            UserError: there is one.
        """
        for side in ("student", "teacher"):
            channels = getattr(pair, f"{side}_shape")[0]
            width = getattr(self.shapes, f"{side}_dim")
            if channels != width:
                name = getattr(self.shapes, f"{side}_name")
                raise self.fail(
                    f"patches of the {side} ({name}) have {channels} channels and its embedding "
                    f"{width}; use a network without layers between"
                )

    def _final_pair(self) -> MapPair:
        shapes = []
        for side in ("student", "teacher"):
            known = getattr(self.shapes, f"{side}_maps")
            if FINAL_PATCHES not in known:
                name = getattr(self.shapes, f"{side}_name")
                raise self.fail(f"the {side} ({name}) has no grid of patches behind its last norm")
            shapes.append(known[FINAL_PATCHES])
        return MapPair(FINAL_PATCHES, FINAL_PATCHES, *shapes)

    def _known(self, side: str) -> dict[str, Shape]:
        """Return maps with the required prefix by stage name, without the prefix."""
        maps: dict[str, Shape] = getattr(self.shapes, f"{side}_maps")
        lead = f"{self.prefix}:" if self.prefix else ""
        known = {
            name.removeprefix(lead): shape
            for name, shape in maps.items()
            if name.startswith(lead) and ":" not in name.removeprefix(lead)
        }
        if not known:
            name = getattr(self.shapes, f"{side}_name")
            raise self.fail(f"the {side} ({name}) has no {self.required}")
        return known

    def _full_name(self, side: str, name: str, known: dict[str, Shape]) -> str:
        if name not in known:
            architecture = getattr(self.shapes, f"{side}_name")
            raise self.fail(
                f"the {side} ({architecture}) has no map '{name}'{nearest(name, known)}; "
                f"known: {', '.join(known)}"
            )
        return f"{self.prefix}:{name}" if self.prefix else name


def resize_map(x_BCHW: Tensor, size: Sequence[int]) -> Tensor:
    """Resize a map: average onto a coarser grid, interpolate onto a finer one."""
    height, width = x_BCHW.shape[-2:]
    if (height, width) == tuple(size):
        return x_BCHW
    if height >= size[0] and width >= size[1]:
        return F.adaptive_avg_pool2d(x_BCHW, (size[0], size[1]))
    return F.interpolate(x_BCHW, size, mode="bilinear", align_corners=False)


def tokens(x_BCHW: Tensor) -> Tensor:
    """Flatten the positions of a map to rows: (B, H W, C)."""
    return rearrange(x_BCHW, "b c h w -> b (h w) c")
