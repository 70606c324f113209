"""CRD: contrastive representation distillation (Tian et al., ICLR 2020, arXiv:1910.10699)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.distributed import mean_over_processes, rank, world_size
from ssdistill.losses import Loss, Shapes, vectors
from ssdistill.losses.base.bank import IndexMemory, centering
from ssdistill.models.representation import Outputs
from ssdistill.settings import Fraction, Positive, PositiveInt

EPS = 1e-7


def scores(v_BD: Tensor, memory_ND: Tensor, contrast_BK: Tensor, temperature: float) -> Tensor:
    """exp(M[i]·v / T) for the memory rows indexed by each row of ``contrast_BK``, in float32.

    One product with the whole memory, (B, N), and a look-up in it: that moves B N numbers, where
    collecting the rows would move B K D.
    """
    with torch.autocast(v_BD.device.type, enabled=False):
        similarity_BN = v_BD.float() @ memory_ND.T
        return (similarity_BN.gather(1, contrast_BK) / temperature).exp()


def noise_contrast(score_BK: Tensor, num_samples: int) -> Tensor:
    """-1/B sum_b [log(o_b0 / (o_b0 + c)) + sum_k log(c / (o_bk + c))], c = K / num_samples.

    ``score_BK`` holds the normalized scores o, the positive in column 0 and K negatives after it.
    """
    noise = (score_BK.shape[1] - 1) / num_samples
    positive_B, negative_BK = score_BK[:, 0], score_BK[:, 1:]
    log_joint_B = (positive_B / (positive_B + noise + EPS)).log()
    log_noise_BK = (noise / (negative_BK + noise + EPS)).log()
    return -(log_joint_B.sum() + log_noise_BK.sum()) / len(score_BK)


def draw_contrast(index_B: Tensor, num_negatives: int, num_samples: int, step: int) -> Tensor:
    """Draw (B, 1 + K) indices: each image's own, then K others, uniform with replacement.

    The draw is a function of the step alone, made for the batches of all processes at once:
    a resumed or a sharded training contrasts the same images.
    """
    count, device = len(index_B), index_B.device
    generator = torch.Generator(device).manual_seed(step)
    shape = (world_size() * count, num_negatives)
    other_BK = torch.randint(num_samples - 1, shape, generator=generator, device=device)
    other_BK = other_BK[rank() * count : (rank() + 1) * count]
    own_B1 = index_B[:, None]
    return torch.cat([own_B1, other_BK + (other_BK >= own_B1)], 1)


class CRD(Loss):
    """Contrast student–teacher pairs against a memory of negatives.

    With v_s = n(W_s s + b_s), v_t = n(W_t t + b_t), both maps trained, memories M_s, M_t of one
    vector per image, o_s = exp(M_t·v_s / T) / Z_s, o_t = exp(M_s·v_t / T) / Z_t, K negatives and
    c = K / N:

    L = -1/B sum over images and both sides of [log o_0 / (o_0 + c) + sum_k log c / (o_k + c)]

    (arXiv:1910.10699). Z is N times the mean score of the first batch and then
    stays. The memories move to n(m M + (1 - m) v) after scoring. The authors' code excludes images
    of the same class from the negatives; here there are no labels, and only the image itself
    is excluded. What a view is scored against are the memories, not the other network's view:
    of several views each is scored and remembered once, however often it is paired, and each
    side is averaged over its own. Memory use: 2 N x dim, and 2 B x N similarities a step and view.

    ```yaml
    losses:
      contrast: {kind: crd, dim: 128, negatives: 16384, weight: 0.8}
    ```

    Args:
        dim: width of the space in which the two are compared.
        negatives: K; at most one less than there are training images.
        temperature: T.
        momentum: m, of the memories.
        center_teacher: subtract the teacher's mean embedding first (not in the paper).

    Raises:
        UserError: with fewer than two training images.
    """

    kind = "crd"
    family = "contrastive"
    paper = "Tian et al., ICLR 2020, arXiv:1910.10699"
    reads = "embedding"
    views = 1
    exact_under_sharding = True

    normaliser: Tensor

    def __init__(
        self,
        shapes: Shapes,
        *,
        dim: PositiveInt = 128,
        negatives: PositiveInt = 16384,
        temperature: Positive = 0.07,
        momentum: Fraction = 0.5,
        center_teacher: bool = False,
    ):
        super().__init__(shapes)
        self.num_samples, self.temperature = shapes.num_samples, temperature
        if self.num_samples < 2:
            raise self.fail("negatives require at least two training images; add images")
        self.num_negatives = min(negatives, self.num_samples - 1)
        self.embed_student = nn.Linear(shapes.student_dim, dim)
        self.embed_teacher = nn.Linear(shapes.teacher_dim, dim)
        self.memory = IndexMemory(self.num_samples, momentum, student=dim, teacher=dim)
        self.center = centering(center_teacher, shapes.teacher_dim)
        self.register_buffer("normaliser", torch.full((2,), -1.0))

    def forward(
        self,
        student: Outputs,
        teacher: Outputs,
        batch: Batch,
        contrast_BK: Tensor | None = None,
    ) -> Tensor:
        """The loss; ``contrast_BK`` (B, 1 + K), own index first, replaces the random draw."""
        index_B = batch.index_B
        if contrast_BK is None:
            contrast_BK = draw_contrast(index_B, self.num_negatives, self.num_samples, batch.step)
        student_views = vectors([student[view] for view in student.distinct])
        teacher_views = self.center(vectors([teacher[view] for view in teacher.distinct]))
        s_ND, t_ND = (
            self.embed_student(torch.cat(student_views)),
            self.embed_teacher(torch.cat(teacher_views)),
        )
        s_ND, t_ND = F.normalize(s_ND.float(), dim=1), F.normalize(t_ND.float(), dim=1)

        score_s_NK = self._scores(s_ND, "teacher", contrast_BK)
        score_t_NK = self._scores(t_ND, "student", contrast_BK)
        z_s, z_t = self._frozen_normaliser(score_s_NK, score_t_NK)
        loss = noise_contrast(score_s_NK / z_s, self.num_samples)
        loss = loss + noise_contrast(score_t_NK / z_t, self.num_samples)

        for s_BD in s_ND.split(len(index_B)):
            self.memory.write(index_B, student=s_BD)
        for t_BD in t_ND.split(len(index_B)):
            self.memory.write(index_B, teacher=t_BD)
        return loss

    def _scores(self, v_ND: Tensor, memory: str, contrast_BK: Tensor) -> Tensor:
        """Scores of one or more views of the batch, each against the same contrast."""
        contrast_NK = contrast_BK.repeat(len(v_ND) // len(contrast_BK), 1)
        return scores(v_ND, self.memory[memory], contrast_NK, self.temperature)

    @torch.no_grad()
    def _frozen_normaliser(self, *scores_NK: Tensor) -> Tensor:
        """Return (Z_s, Z_t): set by the first batch (negative until then), then constant."""
        first = torch.stack([score_NK.mean() for score_NK in scores_NK]) * self.num_samples
        first = mean_over_processes(first)
        chosen = torch.where(self.normaliser < 0, first, self.normaliser)
        self.normaliser.copy_(chosen)
        return chosen
