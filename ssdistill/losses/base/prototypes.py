"""Pseudo-classes: prototypes of the teacher's embeddings, and losses over their logits.

k-means is by hand: scikit-learn's compares by distance, not by cosine, and on the CPU alone, where
it took 0.9 s for 256 centers of 10,000 rows with one thread, and this one 0.2 s.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from lightly.models.modules.heads import ProjectionHead
from rich.progress import track
from torch import Tensor, nn

from ssdistill.distributed import all_gather_rows
from ssdistill.losses import Loss, Read, Shapes, vectors
from ssdistill.models.representation import Representation

TeacherLogits = Literal["prototypes", "projection"]
LLOYD_ITERATIONS = 20
SEEDING_SAMPLE = 16
"""Rows per prototype among which k-means++ looks for its starting points."""
ROWS_AT_ONCE = 8192


@torch.no_grad()
def spherical_kmeans(x_ND: Tensor, count: int) -> Tensor:
    """Cluster the rows of ``x_ND`` by cosine; return unit directions (count, D).

    k-means++ on a sample of the rows, then at most 20 of Lloyd's iterations on all of them;
    a cluster left empty moves to one of the rows that are farthest from their direction. The
    same rows in the same order give the same directions. N x count numbers are never held at once.
    """
    x_ND = F.normalize(x_ND.float(), dim=1)
    generator = torch.Generator(x_ND.device).manual_seed(0)
    center_KD = _starting_points(x_ND, count, generator)
    previous_N = None
    iterations = range(LLOYD_ITERATIONS)
    hidden = not sys.stderr.isatty()
    for _ in track(iterations, "prototypes of the teacher", disable=hidden, transient=True):
        cosine_N, nearest_N = _nearest(x_ND, center_KD)
        if previous_N is not None and torch.equal(nearest_N, previous_N):
            break
        center_KD = _centers(x_ND, cosine_N, nearest_N, count)
        previous_N = nearest_N
    return center_KD


def _starting_points(x_ND: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw the first centers by k-means++ (Arthur & Vassilvitskii, SODA 2007).

    Each next row is drawn with a probability proportional to its squared distance, 2 - 2 cos, from
    the nearest one drawn before.
    """
    order_N = torch.randperm(len(x_ND), generator=generator, device=x_ND.device)
    sample_MD = x_ND[order_N[: SEEDING_SAMPLE * count]]
    chosen_K = torch.zeros(count, dtype=torch.int64, device=x_ND.device)
    nearest_M = sample_MD @ sample_MD[0]
    for k in range(1, count):
        # The largest ratio of weight and exponential noise draws in proportion to the weights.
        noise_M = torch.empty_like(nearest_M).exponential_(generator=generator)
        chosen_K[k] = ((1 - nearest_M).clamp(min=0) / noise_M).argmax()
        nearest_M = torch.maximum(nearest_M, sample_MD @ sample_MD[chosen_K[k]])
    return sample_MD[chosen_K]


def _nearest(x_ND: Tensor, center_KD: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosine to, and the index of, the direction nearest to each row."""
    parts = [(rows @ center_KD.T).max(1) for rows in x_ND.split(ROWS_AT_ONCE)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def _centers(x_ND: Tensor, cosine_N: Tensor, nearest_N: Tensor, count: int) -> Tensor:
    # Sums over sorted rows come out alike every time; a scatter on a GPU adds in any order.
    size_K = torch.bincount(nearest_N, minlength=count)
    sorted_ND = x_ND[nearest_N.argsort(stable=True)]
    center_KD = F.normalize(torch.segment_reduce(sorted_ND, "sum", lengths=size_K), dim=1)
    empty_K = size_K == 0
    farthest_K = cosine_N.topk(count, largest=False).indices
    spare_KD = x_ND[farthest_K[empty_K.cumsum(0) - 1]]
    return torch.where(empty_K[:, None], spare_KD, center_KD)


class Prototypes(nn.Module):
    """Cosines of centered embeddings to prototypes of the training images.

    Until :meth:`fit` or a checkpoint has filled them, the prototypes are NaN, and so is any loss.

    Args:
        count: prototypes, K.
        width: of the embedding.
    """

    mean_D: Tensor
    prototype_KD: Tensor

    def __init__(self, count: int, width: int):
        super().__init__()
        self.register_buffer("mean_D", torch.zeros(width))
        self.register_buffer("prototype_KD", torch.full((count, width), torch.nan))

    @torch.no_grad()
    def fit(self, t_ND: Tensor) -> None:
        """Fit mean and prototypes to embeddings (N, D) of at least K training images."""
        mean_D = t_ND.float().mean(0)
        self.mean_D.copy_(mean_D)
        self.prototype_KD.copy_(spherical_kmeans(t_ND.float() - mean_D, len(self.prototype_KD)))

    def forward(self, t_BD: Tensor) -> Tensor:
        """n(t - mean)·prototype, (B, K), in float32."""
        with torch.autocast(t_BD.device.type, enabled=False):
            t_BD = F.normalize(t_BD.float() - self.mean_D, dim=1)
            return t_BD @ self.prototype_KD.T


class LogitLoss(Loss):
    """Base class of losses that read the teacher's output as logits over pseudo-classes.

    With ``logits: prototypes`` these are the cosines of its centered embedding to ``prototypes``
    directions, which spherical k-means finds among its embeddings of the training images before
    the first step, divided by ``scale``. With ``logits: projection`` the output of the
    self-supervised head it has kept is taken as it is, and ``scale`` is 1.

    A subclass finds the number of classes in ``num_logits``, and the teacher's logits by
    :meth:`teacher_logits`.

    Raises:
        UserError: ``projection`` of a teacher without one, or fewer than two classes.
    """

    family = "prototype and logit"
    reads = "embedding"
    fits_teacher = True
    exact_under_sharding = True

    def __init__(
        self, shapes: Shapes, logits: TeacherLogits, prototypes: int | None, scale: float = 1.0
    ):
        super().__init__(shapes)
        self.read: Read = "projection" if logits == "projection" else "embedding"
        if self.read == "projection" and shapes.teacher_projection_dim is None:
            raise self.fail(
                "logits=projection: the teacher has no projection head; set logits=prototypes"
            )
        self.classify: nn.Module = nn.Identity()
        self.scale = 1.0 if self.read == "projection" else scale
        self.num_logits = width = self.teacher_width(self.read)
        if self.read == "embedding":
            num_prototypes = prototypes or default_prototypes(shapes.num_samples)
            self.num_logits = min(num_prototypes, shapes.num_samples)
            self.classify = Prototypes(self.num_logits, width)
        self.fits_teacher = self.read == "embedding"
        if self.num_logits < 2:
            raise self.fail(
                f"at least two {logits} required, got 1; use more images or a wider projection"
            )

    def fit_teacher(self, teacher: Representation) -> None:
        """Fit the prototypes to the teacher's embeddings of the training images.

        Raises:
            UserError: fewer images than prototypes.
        """
        if not isinstance(self.classify, Prototypes):
            return
        count = len(teacher.embedding_BD)
        if count < self.num_logits:
            raise self.fail(
                f"prototypes={self.num_logits} exceeds the {count} training images; lower "
                "prototypes"
            )
        self.classify.fit(teacher.embedding_BD)

    def teacher_logits(self, teacher_VD: Tensor) -> Tensor:
        """Return the teacher's logits (V, K) in float32, from what :attr:`read` names."""
        return self.classify(teacher_VD).float() / self.scale


def default_prototypes(num_samples: int, at_most: int = 1024) -> int:
    """Default number of prototypes: at most one for every eight images."""
    return max(2, min(at_most, num_samples // 8))


def for_each_pair(
    outputs: Sequence[Representation], read: Read, function: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """Apply ``function`` to all distinct views stacked along the batch; return results by pair.

    A view that is paired several times is computed, and counts among the rows, once.
    """
    distinct = {id(view): view for view in outputs}
    stacked = torch.cat(vectors(list(distinct.values()), read))
    result_by_view = dict(zip(distinct, function(stacked).chunk(len(distinct)), strict=True))
    return [result_by_view[id(view)] for view in outputs]


@torch.no_grad()
def sinkhorn(logits_BK: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Assignment probabilities (B, K) that use all classes about equally (arXiv:2006.09882).

    ``iterations`` times in turn the columns of exp(logits / T), over the rows of all processes,
    and the rows are scaled to equal sums. Done on logarithms in float32, which neither overflow
    nor leave a row empty.
    """
    with torch.autocast(logits_BK.device.type, enabled=False):
        log_BK = logits_BK.float() / temperature
        for _ in range(iterations):
            log_column_K = log_BK.logsumexp(0, keepdim=True)
            log_BK = log_BK - all_gather_rows(log_column_K).logsumexp(0)
            log_BK = log_BK.log_softmax(1)
        return log_BK.exp()


class DINOHead(nn.Module):
    """Three linear layers with GELU between, then cosines to K learned directions.

    As in DINO (arXiv:2104.14294, app. C) with the weight normalization of the last layer fixed to
    length 1; that layer is computed in float32.
    """

    def __init__(self, in_dim: int, out_dim: int, hidden_dim: int, bottleneck_dim: int):
        super().__init__()
        self.mlp = ProjectionHead(
            [
                (in_dim, hidden_dim, None, nn.GELU()),
                (hidden_dim, hidden_dim, None, nn.GELU()),
                (hidden_dim, bottleneck_dim, None, None),
            ]
        )
        self.directions = nn.Linear(bottleneck_dim, out_dim, bias=False)

    def forward(self, s_BD: Tensor) -> Tensor:
        z_BD = self.mlp(s_BD)
        with torch.autocast(z_BD.device.type, enabled=False):
            direction_KD = F.normalize(self.directions.weight.float(), dim=1)
            return F.normalize(z_BD.float(), dim=1) @ direction_KD.T
