"""Weight sharing (palettization) step: smaller files, no speed-up."""

import copy
from collections.abc import Mapping
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Annotated, Literal, cast

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ssdistill.artifacts.coding.codes import Palette, Sparse
from ssdistill.artifacts.coding.file import coded_bytes, current
from ssdistill.artifacts.coding.huffman import entropy
from ssdistill.compress import Context, Step
from ssdistill.compress.codes import storage
from ssdistill.compress.codes.fake_quant import weights_of
from ssdistill.compress.codes.palettes import codebooks, nearest_index
from ssdistill.compress.preconditions import check_input_model
from ssdistill.errors import UserError, nearest
from ssdistill.models.model import Model

if TYPE_CHECKING:
    from ssdistill.settings.kinds.steps import ShareSettings

Shared = Palette | Sparse
"""A weight by its codebook, with or without zeros."""


class Share(Step):
    """Replace every weight by the nearest number of a small codebook that k-means has found.

    This is for the file, which then stores the codebooks and, for every weight, which number it
    is, in as many bits as that takes or in Huffman's code where that is shorter: the network
    that is loaded from it has its weights back as floats, as fast as before. Biases and norms
    stay as they are, and so do weights whose codes would take no less than their numbers. What
    a ``zeros`` step has set to zero stays zero.

    Args:
        bits: of a weight, for a codebook of ``2**bits`` numbers.
        clusters: so many numbers instead.
        per: a codebook for every layer, or for every output ``channel``: closer to the weights,
            and larger.
        across: which layers share one codebook: ``none`` do, those of the same ``shape``, or
            ``all``.
        codebook: ``float16`` halves the codebooks.
        skip: layers to leave as they are, as patterns of their names such as ``layer4.*``.
    """

    kind = "share"
    paper = "Han et al., ICLR 2016, arXiv:1510.00149"
    makes = "shared"

    def __init__(
        self,
        *,
        bits: Annotated[int, Field(ge=1, le=8)] = 5,
        clusters: Annotated[int, Field(ge=2, le=256)] | None = None,
        per: Literal["tensor", "channel"] = "tensor",
        across: Literal["none", "shape", "all"] = "none",
        codebook: Literal["float32", "float16"] = "float32",
        skip: tuple[str, ...] = (),
    ):
        self.size = 2**bits if clusters is None else clusters
        if not 2 <= self.size <= 256:
            raise UserError(f"share.size={self.size}: must be between 2 and 256")
        if per == "channel" and across != "none":
            raise UserError(
                f"share: per=channel cannot be combined with across={across}: set one of them"
            )
        self.per, self.across, self.codebook, self.skip = per, across, codebook, skip

    @classmethod
    def row(cls, settings: "ShareSettings") -> str:
        if settings.clusters is not None:
            return f"{cls.makes}_{settings.clusters}_numbers"
        return f"{cls.makes}_{settings.bits}_bits"

    @torch.no_grad()
    def apply(self, model: Model, context: Context) -> Model:
        """A copy of ``model`` with shared weights, and with ``coded`` that says which.

        ``context.record`` receives ``layers`` (how many are shared), ``clusters``,
        ``index_entropy`` (bits a weight that no code of single weights can go below),
        ``weight_error`` (squared error over squared weights), ``bytes_fixed`` and
        ``bytes_entropy`` (of the file, without and with Huffman's code) and ``speed``.

        Raises:
            UserError: a file for a runtime, weights that are not finite, a pattern that matches
                no layer, or no layer that sharing makes shorter.
        """
        check_input_model(self.kind, model)
        weights = self._weights(model)
        current_codes = current(model.net.state_dict(), model.coded)
        masks = {k: code.mask for k, code in current_codes.items() if isinstance(code, Sparse)}
        groups = self._groups(weights)
        codes: dict[str, Shared] = {}
        for keys in context.progress(groups, "codebooks"):
            codes |= self._share({key: weights[key] for key in keys}, masks)
        if not codes:
            raise UserError(
                f"share: no layer of '{model.name}' becomes smaller with a codebook of "
                f"{self.size} values; lower size"
            )
        shared = copy.deepcopy(model)
        for name, key in storage.names(shared.net, codes).items():
            shared.net.get_parameter(name).copy_(codes[key].decode())
            shared.coded[name] = codes[key]
        storage.report(shared, context)
        context.record.update(layers=len(codes), clusters=self.size, **_losses(codes, weights))
        return shared

    def _weights(self, model: Model) -> dict[str, Tensor]:
        weights = {k: layer.weight.detach().cpu() for k, layer in weights_of(model.net).items()}
        names = {key: key.removesuffix(".weight") for key in weights}
        for pattern in self.skip:
            if not any(fnmatch(name, pattern) for name in names.values()):
                raise UserError(
                    f"share.skip: no layer matches '{pattern}'{nearest(pattern, names.values())}; "
                    "correct the pattern"
                )
        return {
            key: weight
            for key, weight in weights.items()
            if not any(fnmatch(names[key], pattern) for pattern in self.skip)
        }

    def _groups(self, weights: Mapping[str, Tensor]) -> list[list[str]]:
        """Keys of the layers that have one codebook."""
        kinds = {"none": lambda key: key, "shape": lambda key: weights[key].shape}
        kind = kinds.get(self.across, lambda key: None)
        groups: dict[object, list[str]] = {}
        for key in weights:
            groups.setdefault(kind(key), []).append(key)
        return list(groups.values())

    def _share(
        self, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]
    ) -> dict[str, Shared]:
        """Codes of weights that have one codebook, or one for each channel of the only weight."""
        nonzero = {k: weight[masks[k]] if k in masks else weight for k, weight in weights.items()}
        if not any(values.numel() for values in nonzero.values()):
            return {}
        if self.per == "channel":
            (key, weight), *_ = weights.items()
            code = self._by_channel(weight, masks.get(key))
            codes = {key: code} if code is not None else {}
        else:
            values_1N = torch.cat([values.flatten() for values in nonzero.values()])[None]
            book_K = self._stored(codebooks(values_1N, self.size)).unique()
            index = {k: nearest_index(v.view(1, -1), book_K[None]).view(v.shape)
                     for k, v in nonzero.items()}  # fmt: skip
            codes = {
                key: Sparse(masks[key], book_K, index[key])
                if key in masks
                else Palette(book_K, index[key])
                for key in weights
            }
        alone = len(codes) == 1
        return {
            key: code
            for key, code in codes.items()
            if isinstance(code, Sparse) or not alone or coded_bytes(code) < weights[key].nbytes
        }

    def _by_channel(self, weight: Tensor, mask: Tensor | None) -> Shared | None:
        if mask is None:
            book_CK = self._stored(codebooks(weight.flatten(1), self.size))
            return Palette(book_CK, nearest_index(weight.flatten(1), book_CK).view(weight.shape))
        rows = [row[keep] for row, keep in zip(weight, mask, strict=True)]
        counts_C = torch.tensor([len(row) for row in rows])
        padded_CN = pad_sequence(rows, batch_first=True)
        # A channel without any weight counts one zero.
        book_CK = self._stored(codebooks(padded_CN, self.size, counts_C.clamp(min=1)))
        index_CN = nearest_index(padded_CN, book_CK)
        is_value_CN = torch.arange(padded_CN.shape[1]) < counts_C[:, None]
        return Sparse(mask, book_CK, index_CN[is_value_CN])

    def _stored(self, book: Tensor) -> Tensor:
        """Values as stored in the file."""
        return book.half().float() if self.codebook == "float16" else book


def _losses(codes: Mapping[str, Shared], weights: Mapping[str, Tensor]) -> dict[str, float]:
    """Entropy of the indices, in bits a weight, and the relative squared error."""
    bits = numbers = 0.0
    error = squares = 0.0
    for key, code in codes.items():
        index = cast("Tensor", code.index).flatten().long()  # all have a codebook
        bits += entropy(index.bincount().numpy()) * index.numel() if index.numel() else 0.0
        numbers += index.numel()
        weight = weights[key].double()
        error += float((code.decode() - weight).square().sum())
        squares += float(weight.square().sum())
    return {"index_entropy": bits / numbers, "weight_error": error / max(squares, 1e-300)}
