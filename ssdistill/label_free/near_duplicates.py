"""Find near-duplicates among the images of a source by the embeddings of an encoder."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssdistill.data.checking import Checked, find_near_duplicates
from ssdistill.data.duplicates import near_groups
from ssdistill.data.opening import open_stores
from ssdistill.data.progress import with_bar
from ssdistill.data.settings import StoreSettings
from ssdistill.label_free.features import extract
from ssdistill.models.representation import Representation
from ssdistill.settings import Size


def find_near(
    checked: Checked,
    encoder: Callable[[Tensor], Representation],
    settings: StoreSettings,
    root: Path,
    *,
    image_size: Size,
    cosine: float,
    device: str | torch.device | None = None,
) -> None:
    """Set ``checked.near``: groups of readable images of both splits that an encoder finds alike.

    Args:
        settings: of the source.
        root: folder of decoded images.
        image_size: in pixels that the encoder is given.
        cosine: smallest similarity of near-duplicates.
        device: where to encode.

    Raises:
        UserError: whatever the source or the encoder raises.
    """
    # Those that cannot be read are listed already, however many.
    lenient = settings.model_copy(update={"max_bad": 1.0, "image_size": image_size})
    stores = open_stores(checked.source, lenient, image_size, root)

    def embed(split: str) -> tuple[Tensor, np.ndarray]:
        store = stores[split]
        row_M = np.delete(np.arange(len(store) + len(store.bad)), store.bad_rows)
        return extract(encoder, store.images, image_size=image_size, device=device), row_M

    def group(embedding_ND: Tensor) -> list[list[int]]:
        watched = partial(with_bar, total=len(embedding_ND), title="comparing embeddings")
        return near_groups(embedding_ND, cosine, watched)

    find_near_duplicates(checked, embed, group)
