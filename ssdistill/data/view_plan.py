"""Plan, draw and build all views of a step."""

from dataclasses import dataclass

from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.data.extra import PlannedView, extra_views, neighbor_views, plain_views
from ssdistill.data.mixing import MixSettings, mix_views
from ssdistill.data.recipes import ViewRecipe
from ssdistill.data.view_parameters import ViewParameters, view_parameters
from ssdistill.data.views import make_view, view_of_crops
from ssdistill.settings import Size


@dataclass(frozen=True)
class ViewPlan:
    """The views of a training run.

    Args:
        recipes: one per view.
        seed: of the random draws.
        size: of views whose recipe has no ``size``.
        extra: names of extra views, see :mod:`ssdistill.data.extra`.
        mix: MixUp or CutMix of the views; None to mix nothing.
    """

    recipes: tuple[ViewRecipe, ...]
    seed: int
    size: Size
    extra: tuple[str, ...] = ()
    mix: MixSettings | None = None

    @property
    def plain(self) -> list[PlannedView]:
        """The views of the images of a batch."""
        return plain_views(self.recipes, self.size)

    @property
    def of_neighbors(self) -> list[PlannedView]:
        """The views of their neighbors."""
        return list(neighbor_views(self.extra, self.recipes, self.size).values())

    def draw(
        self, view: PlannedView, epoch: int, index_B: Tensor, height_B: Tensor, width_B: Tensor
    ) -> ViewParameters:
        """Draw the parameters of a view, for images of (B,) heights and widths in pixels."""
        return view_parameters(
            view.recipe,
            seed=self.seed,
            epoch=epoch,
            index_B=index_B,
            view=view.number,
            height=height_B,
            width=width_B,
        )

    def views(self, batch: Batch) -> list[Tensor]:
        """Build all views of a batch, (B, C, h, w) in [0, 1], extra views last."""
        views = [self._view(batch, view) for view in self.plain]
        if self.mix:
            views = mix_views(views, self.mix, seed=self.seed, step=batch.step)
        extra = extra_views(self.extra, views, batch, self.recipes, seed=self.seed, size=self.size)
        return [*views, *extra]

    def _view(self, batch: Batch, view: PlannedView) -> Tensor:
        if crops := batch.crops.get(view.number):
            return view_of_crops(crops)
        if batch.images_BHWC is None:
            raise ValueError(f"no crops for view {view.number}: load the batch with the same plan")
        return make_view(
            batch.images_BHWC,
            view.recipe,
            seed=self.seed,
            epoch=batch.epoch,
            index_B=batch.number_B,
            view=view.number,
            size=view.size,
        )
