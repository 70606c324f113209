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
        passes: passes over the images after which the views of an image repeat; None for never.
        chosen: numbers of the views to make; None for all.
    """

    recipes: tuple[ViewRecipe, ...]
    seed: int
    size: Size
    extra: tuple[str, ...] = ()
    mix: MixSettings | None = None
    passes: int | None = None
    chosen: tuple[int, ...] | None = None

    @property
    def plain(self) -> list[PlannedView]:
        """The views of the images of a batch."""
        views = plain_views(self.recipes, self.size)
        return [view for view in views if self.chosen is None or view.number in self.chosen]

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
            epoch=self.replayed(epoch),
            index_B=index_B,
            view=view.number,
            height=height_B,
            width=width_B,
        )

    def replayed(self, epoch: int) -> int:
        """Return the epoch whose views are made in ``epoch``."""
        return epoch if self.passes is None else epoch % self.passes

    def numbers(self, index_B: Tensor, draw_B: Tensor | None) -> Tensor:
        """Return the numbers by which views are drawn, (B,).

        Positions in an epoch would give an image that is drawn by weight other views each time.
        """
        return index_B if draw_B is None or self.passes is not None else draw_B

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
            epoch=self.replayed(batch.epoch),
            index_B=self.numbers(batch.index_B, batch.draw_B),
            view=view.number,
            size=view.size,
        )
