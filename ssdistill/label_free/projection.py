"""Two-dimensional projections of embeddings."""

from typing import Literal

import numpy as np
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
    unit_ND = functional.normalize(z_ND.double(), dim=1).numpy()
    if method == "umap":
        return _umap(unit_ND), "UMAP of cosine distances"
    from sklearn.decomposition import PCA

    centered_ND = unit_ND - unit_ND.mean(0)
    pca = PCA(min(2, *unit_ND.shape), svd_solver="covariance_eigh")
    with np.errstate(invalid="ignore"):  # its own fractions, of embeddings that are equal
        points_N2 = pca.fit_transform(centered_ND)
    points_N2 = np.pad(points_N2, ((0, 0), (0, 2 - points_N2.shape[1])))
    # Equal embeddings vary by rounding, which is no variance.
    total = max(centered_ND.var(0, ddof=1).sum(), 1e-30)
    percent = 100 * pca.explained_variance_.sum() / total
    return points_N2, f"first two principal components: {percent:.0f} % of the variance"


def turned(points_N2: np.ndarray, reference_N2: np.ndarray) -> np.ndarray:
    """``points_N2`` rotated and mirrored to lie as the reference does (Schönemann 1966).

    Distances within the map stay what they are.
    """
    from scipy.linalg import orthogonal_procrustes

    rotation_22, _ = orthogonal_procrustes(points_N2, reference_N2)
    return points_N2 @ rotation_22


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
