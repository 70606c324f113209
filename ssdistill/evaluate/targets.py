"""Validate labels, and number classes as probes predict them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssdistill.errors import UserError
from ssdistill.label_free.features import as_feature_pair


def as_labels(labels: Any, z_ND: Tensor, name: str) -> Tensor:
    """Return ``labels`` as an int64 (N,) tensor on the device of its features.

    Raises:
        UserError: no labels, not integers, or not one per row.
    """
    if labels is None or len(labels) == 0:
        raise UserError(f"{name} are missing: evaluation requires a labeled data set")
    if not isinstance(labels, Tensor):
        labels = np.asarray(labels)
    target_N = torch.as_tensor(labels)
    if target_N.ndim != 1 or target_N.is_floating_point() or target_N.is_complex():
        raise UserError(f"{name} must be one integer per image, got {tuple(target_N.shape)}")
    if len(target_N) != len(z_ND):
        raise UserError(f"{name}: {len(target_N)} labels for {len(z_ND)} feature rows")
    return target_N.to(z_ND.device, torch.int64)


def as_probe_data(
    train_ND: Any, train_labels: Any, test_ND: Any, test_labels: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Validate features and labels; classes are numbered from 0 in the order of ``classes_K``.

    Returns:
        train_ND, train_target_N, test_ND, test_target_N, classes_K.

    Raises:
        UserError: also for two widths, fewer than two classes, or a test class never trained on.
    """
    train_ND, test_ND = as_feature_pair(train_ND, test_ND)
    train_label_N = as_labels(train_labels, train_ND, "training labels")
    test_label_N = as_labels(test_labels, test_ND, "test labels")
    train_target_N, test_target_N, classes_K = as_targets(train_label_N, test_label_N)
    return train_ND, train_target_N, test_ND, test_target_N, classes_K


def as_targets(train_label_N: Tensor, test_label_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Number classes from 0 in the order of ``classes_K``.

    Returns:
        train_target_N, test_target_N, classes_K.

    Raises:
        UserError: fewer than two classes, or a test class never trained on.
    """
    classes_K, train_target_N = torch.unique(train_label_N, return_inverse=True)
    if len(classes_K) < 2:
        raise UserError(
            f"training labels have a single class ({classes_K.item()}); evaluation requires two "
            "or more"
        )
    unseen = test_label_N[~torch.isin(test_label_N, classes_K)].unique().tolist()
    if unseen:
        raise UserError(
            f"test labels have classes without training images: {', '.join(map(str, unseen[:5]))}"
            f"{' …' if len(unseen) > 5 else ''}; add some, or remove these test images"
        )
    return train_target_N, torch.searchsorted(classes_K, test_label_N), classes_K
