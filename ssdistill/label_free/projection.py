"""Two-dimensional projections of embeddings."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ssdistill.errors import UserError

Method = Literal["pca", "umap"]
METHODS = ("pca", "umap")


def project(z_ND: Tensor, method: Method = "pca") -> tuple[np.ndarray, str]:
    """Project unit-length embeddings to centered points (N, 2); also returns a description.

    Args:
        z_ND: embeddings, N >= 2.
        method: ``pca`` is linear, and distances in it are true ones, seen from one side;
            ``umap`` keeps neighborhoods only (McInnes et al., arXiv:1802.03426).

    Raises:
        UserError: UMAP is requested and ``umap-learn`` is not installed.
    """
    unit_ND = functional.normalize(z_ND.double(), dim=1)
    if method == "umap":
        return _umap(unit_ND.numpy()), "UMAP of cosine distances"
    centered_ND = unit_ND - unit_ND.mean(0)
    values, vectors_DD = torch.linalg.eigh(centered_ND.T @ centered_ND)
    axes_D2 = vectors_DD[:, -2:].flip(1)
    if axes_D2.shape[1] < 2:
        axes_D2 = functional.pad(axes_D2, (0, 2 - axes_D2.shape[1]))
    # Eigenvectors have no sign; the largest component shall be positive.
    largest = axes_D2.gather(0, axes_D2.abs().argmax(0, keepdim=True))
    axes_D2 = axes_D2 * torch.where(largest < 0, -1.0, 1.0)
    total = values.clamp(min=0).sum().clamp(min=1e-30)
    share = 100 * values[-2:].clamp(min=0).sum() / total
    plane = f"first two principal components: {share:.0f} % of the variance"
    return (centered_ND @ axes_D2).numpy(), plane


def turned(points_N2: np.ndarray, reference_N2: np.ndarray) -> np.ndarray:
    """``points_N2`` rotated and mirrored to lie as the reference does (Schönemann 1966).

    Distances within the map stay what they are.
    """
    left_22, _, right_22 = np.linalg.svd(points_N2.T @ reference_N2)
    return points_N2 @ left_22 @ right_22


def check_method(method: str) -> None:
    """Refuse a map that cannot be drawn, before anything is encoded.

    Raises:
        UserError: UMAP is requested and ``umap-learn`` is not installed.
    """
    from importlib.util import find_spec

    if method == "umap" and find_spec("umap") is None:
        raise UserError("a UMAP projection requires umap-learn: pip install 'ssdistill[umap]'")


def _umap(unit_ND: np.ndarray) -> np.ndarray:
    import warnings

    import umap  # pyright: ignore[reportMissingImports]  # an extra of its own

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reducer = umap.UMAP(n_components=2, metric="cosine", random_state=0)
        points_N2 = np.asarray(reducer.fit_transform(unit_ND), dtype=float)
    return points_N2 - points_N2.mean(0)
