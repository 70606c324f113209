"""LiDAR: how well an embedding separates images from their augmentations, without labels."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from rich import get_console
from rich.progress import track
from torch import Tensor, nn

from ssdistill.data.recipes import ViewRecipe
from ssdistill.data.views import make_view
from ssdistill.distributed import ALONE, Assembled, Team, each
from ssdistill.errors import UserError
from ssdistill.label_free.collapse import ROUNDING, alignment, entropy_rank
from ssdistill.label_free.features import evaluating, sendable, target_of
from ssdistill.models.representation import Representation
from ssdistill.settings import Size

IMAGES, VIEWS = 1000, 10
"""Surrogate classes, at most, and views of each: ten thousand images to encode."""
DELTA = 1e-4


@torch.no_grad()
def lidar(z_VND: Tensor, delta: float = DELTA) -> float:
    """Rank of the linear discriminant analysis with images as classes (arXiv:2312.04000).

    Of n images with q views each, mu_i the mean embedding of image i's views, mu that of all
    (section 3, eqs. 1 to 4; denominators of the unbiased estimates, which cancel but for delta):

        S_b = sum_i (mu_i - mu) (mu_i - mu)^T / (n - 1)
        S_w = sum_i sum_v (z_iv - mu_i) (z_iv - mu_i)^T / (n (q - 1)) + ridge I
        S = S_w^-1/2 S_b S_w^-1/2, with eigenvalues lambda_k
        LiDAR = exp(-sum_k p_k log p_k), p_k = lambda_k / sum_j lambda_j + epsilon

    The paper leaves both constants open. Here epsilon is 0, as 0 log 0 is 0, and
    ridge = (delta trace(S_w) + r^2 mean |z|^2) / D with r = ``ROUNDING``: relative to the
    embeddings, so that the score has no unit, and above what rounding makes of views that are
    embedded alike. Between 1 and min(n - 1, D): compare at the same n, q, views and D. The
    authors want n above D, and q of 10 or more: directions without any signal keep eigenvalues
    of about 1 / q.

    Args:
        z_VND: embeddings of every view of every image, at least two of both.

    Returns:
        the score; 0 where all images have the same mean but for rounding, NaN where an embedding
        is not finite.

    Raises:
        UserError: fewer than two views or images.
    """
    z_VND = torch.as_tensor(z_VND).detach()
    if z_VND.ndim != 3 or min(z_VND.shape[:2]) < 2 or z_VND.shape[2] < 1:
        raise UserError(
            "lidar requires embeddings (views, images, D) of two or more views and images, "
            f"got {tuple(z_VND.shape)}"
        )
    if not torch.isfinite(z_VND).all():
        return math.nan
    count_v, count_n, width = z_VND.shape
    # One view at a time in float64: all of them together may be large.
    mean_ND = cast("Tensor", sum(z_ND.double() for z_ND in z_VND)) / count_v
    within_DD = mean_ND.new_zeros(width, width)
    for z_ND in z_VND:
        gap_ND = z_ND.double() - mean_ND
        within_DD += gap_ND.T @ gap_ND
    within_DD /= count_n * (count_v - 1)
    floor = ROUNDING**2 * sum(z_ND.double().square().sum() for z_ND in z_VND) / (count_v * count_n)
    between_ND = (mean_ND - mean_ND.mean(0)) / math.sqrt(count_n - 1)
    if between_ND.square().sum() <= floor:
        return 0.0
    within_DD.diagonal().add_((delta * within_DD.trace() + floor) / width)
    # The eigenvalues of S are also those of L^-1 S_b L^-T where S_w = L L^T.
    root_DD = torch.linalg.cholesky(within_DD)
    white_DN = torch.linalg.solve_triangular(root_DD, between_ND.T, upper=False)
    gram = white_DN @ white_DN.T if width < count_n else white_DN.T @ white_DN
    return entropy_rank(torch.linalg.eigvalsh(gram).clamp(min=0))


def view_metrics(
    encoder: Callable[[Tensor], Representation],
    images_NHWC: np.ndarray,
    index_N: Tensor,
    recipe: ViewRecipe,
    size: Size,
    device: str | torch.device | None = None,
    team: Team = ALONE,
) -> dict[str, float]:
    """Compute the metrics that require several views of an image.

    Costs two views of every image, and ``VIEWS`` of ``IMAGES`` of them at most, evenly spread.

    Args:
        encoder, images_NHWC, index_N, recipe, size, device, team: as for :func:`view_embeddings`.

    Returns:
        ``collapse/alignment`` of two views of every image, and ``collapse/lidar``.

    Raises:
        UserError: fewer than two images.
    """
    few = slice(None, None, -(-len(images_NHWC) // IMAGES))
    where = {"device": device, "team": team}
    encoded = partial(view_embeddings, encoder, recipe=recipe, size=size, **where)
    pair_VND = encoded(images_NHWC, index_N, views=(0, 1))
    # The first two of the views serve both metrics.
    more_VND = encoded(images_NHWC[few], index_N[few], views=range(2, VIEWS))
    return {
        "collapse/alignment": alignment(*pair_VND),
        "collapse/lidar": lidar(torch.cat([pair_VND[:, few], more_VND])),
    }


def view_embeddings(
    encoder: Callable[[Tensor], Representation],
    images_NHWC: np.ndarray,
    index_N: Tensor,
    recipe: ViewRecipe,
    size: Size,
    *,
    views: Sequence[int],
    batch_size: int = 512,
    device: str | torch.device | None = None,
    progress: bool = True,
    team: Team = ALONE,
) -> Tensor:
    """Return embeddings of several augmented views of every image.

    A view is a pure function of its number and the image's index (seed and epoch are 0), so that
    every model is shown the same ones. The encoder is used in eval mode and left as it was.

    Args:
        encoder: anything that maps float BCHW images in [0, 1] to a Representation.
        images_NHWC: uint8 pixels, or float32 in [0, 1].
        index_N: int64 positions of the images in their store.
        recipe: how views are drawn.
        size: in pixels that the encoder is given.
        views: numbers of the views.
        batch_size: images encoded at a time.
        device: where to draw and encode; default: where the encoder is.
        progress: a bar on the terminal (none where the output is not one).
        team: as for :func:`ssdistill.label_free.features.extract`.

    Returns:
        z_VND, float32 on the CPU; empty except in process 0.
    """
    if not isinstance(encoder, nn.Module):
        team = team if isinstance(team, Assembled) else ALONE
    drawn = images_NHWC, index_N, recipe, size, tuple(views), batch_size
    return team.do(_view_embeddings, encoder, *drawn, target_of(encoder, device), progress=progress)


def _view_embeddings(
    encoder: Callable[[Tensor], Representation],
    images_NHWC: np.ndarray,
    index_N: Tensor,
    recipe: ViewRecipe,
    size: Size,
    views: tuple[int, ...],
    batch_size: int,
    device: torch.device,
    *,
    progress: bool = False,
) -> Tensor:
    def encode(part: tuple[int, slice]) -> Tensor:
        number, rows = part
        x_BCHW = make_view(
            torch.from_numpy(np.array(images_NHWC[rows])).to(device),
            recipe,
            seed=0,
            epoch=0,
            index_B=index_N[rows].to(device),
            view=views[number],
            size=size,
        )
        return sendable(encoder(x_BCHW.contiguous(memory_format=torch.channels_last)).embedding_BD)

    embeddings_by_view: list[list[Tensor]] = [[] for _ in views]
    parts = [
        (number, slice(start, start + batch_size))
        for number in range(len(views))
        for start in range(0, len(images_NHWC), batch_size)
    ]
    shown = progress and get_console().is_terminal
    bar: dict[str, Any] = {"total": len(parts), "transient": True, "disable": not shown}
    with evaluating(encoder, device), torch.inference_mode():
        made = each(parts, encode, UserError)
        for (number, _), z_BD in track(made, "encoding views", **bar):
            embeddings_by_view[number].append(z_BD)
    if not embeddings_by_view[0]:  # process 0 has them
        return torch.empty(0, 0, 0)
    return torch.stack([torch.cat(of_view) for of_view in embeddings_by_view])
