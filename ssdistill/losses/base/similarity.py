"""Similarity distributions: softmax over a vector's cosines to a set of anchors.

One primitive makes a family of losses, which differ in the anchors (a queue of the teacher's
keys, one queue for each network, the batch), the two temperatures, and the form: KL divergence,
or cross-entropy, which is larger by the teacher's entropy and has the same gradient.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ssdistill.data.batch import Batch
from ssdistill.losses import Loss, Read, Shapes, vectors
from ssdistill.losses.base.bank import Bank, Init, centering, default_queue_size
from ssdistill.models.ema import momentum_copy, update_momentum
from ssdistill.models.representation import Outputs, Representation

Target = Literal["teacher", "momentum"]

_LEAST_LOG = -60.0
"""Log of the smallest probability: too small to count, and large enough that no product of it with
others is a denormal number, with which a CPU is many times slower."""
_CPU_CHUNK, _CHUNK = 1 << 22, 1 << 25
"""Similarities worked on at a time: on a CPU as many as stay in memory that is reused at once."""


def unit(x_BD: Tensor) -> Tensor:
    """Scale rows to length 1 in float32; zero rows stay zero."""
    return F.normalize(x_BD.float(), dim=-1)


def divergences(student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) of every row of logits, (N,).

    No gradient goes to the teacher's.
    """
    log_q_NK = student_NK.log_softmax(-1)
    log_p_NK = teacher_NK.detach().log_softmax(-1)
    return (log_p_NK.exp() * (log_p_NK - log_q_NK)).sum(-1)


def queue_divergence(
    s_BD: Tensor,
    t_BE: Tensor,
    student_KD: Tensor,
    teacher_KE: Tensor,
    temperature_student: float,
    temperature_teacher: float,
    *,
    own: bool = False,
    kl: bool = True,
) -> Tensor:
    """mean_b sum_k p_bk log(p_bk / q_bk), or with -log q_bk alone (cross-entropy), in float32.

    p = softmax(n(t)·A_t / T_t), without gradient, and q = softmax(n(s)·A_s / T_s),
    n(x) = x / |x|, over K anchors: row k of ``student_KD`` belongs to row k of ``teacher_KE``.

    Args:
        student_KD, teacher_KE: A_s and A_t, compared as they are, without gradient.
        own: put the teacher's own vector in front of the anchors: logits 1 / T_t for p and
            n(s)·n(t) / T_s for q. Both networks' vectors are then equally wide.
        kl: KL divergence rather than cross-entropy.
    """
    with torch.autocast(s_BD.device.type, enabled=False):
        s_BD, t_BE = unit(s_BD), unit(t_BE.detach())
        own_s_BO = own_t_BO = s_BD.new_empty(len(s_BD), 0)
        if own:
            own_s_BO = (s_BD * t_BE).sum(1, keepdim=True) / temperature_student
            own_t_BO = torch.full_like(own_s_BO, 1 / temperature_teacher)
        s_BD, t_BE = s_BD / temperature_student, t_BE / temperature_teacher
        compute = partial(
            _mean_divergence,
            t_BE=t_BE,
            own_t_BO=own_t_BO,
            student_KD=student_KD,
            teacher_KE=teacher_KE,
            kl=kl,
        )
        return _WithGradients.apply(compute, s_BD, own_s_BO)


class _WithGradients(torch.autograd.Function):
    """A scalar whose gradients are computed together with it, as constants.

    ``_WithGradients.apply(compute, *inputs)`` returns the value of ``compute(*inputs)``, which
    gives a scalar and one gradient for each of the inputs. Backward scales these and reads
    nothing else, so that whatever ``compute`` has read may change before; a second derivative
    raises an error.
    """

    @staticmethod
    def forward(
        ctx: Any, compute: Callable[..., tuple[Tensor, Sequence[Tensor]]], *inputs: Tensor
    ) -> Tensor:
        value, gradients = compute(*inputs)
        ctx.save_for_backward(*gradients)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(grad * gradient for gradient in ctx.saved_tensors)


def _mean_divergence(
    s_BD: Tensor,
    own_s_BO: Tensor,
    *,
    t_BE: Tensor,
    own_t_BO: Tensor,
    student_KD: Tensor,
    teacher_KE: Tensor,
    kl: bool,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Mean divergence of softmax([own_s, s A_s^T]) from softmax([own_t, t A_t^T]).

    Own logits (B, O), O = 0 or 1, share the softmax with the anchors. Rows are worked on in
    chunks of R, so that no (B, K) matrix exists::

        s, t (R, ...) ──> log q, log p (R, K) ─┬─> loss (R)
                                               └─> q - p (R, K) ──> (q - p) A_s (R, D)

    Returns:
        the mean over B rows, and its gradients by ``s_BD`` and ``own_s_BO``.
    """
    count = len(s_BD)
    loss_B, grad_BD, grad_BO = map(torch.empty_like, (s_BD[:, 0], s_BD, own_s_BO))
    for rows in _row_chunks(count, len(student_KD), s_BD.device.type):
        log_q_RK, log_q_RO = _log_probabilities(s_BD[rows], student_KD, own_s_BO[rows])
        log_p_RK, log_p_RO = _log_probabilities(t_BE[rows], teacher_KE, own_t_BO[rows])
        anchors_R, excess_RK = _divergence_(log_q_RK, log_p_RK, kl)
        own_R, excess_RO = _divergence_(log_q_RO, log_p_RO, kl)
        loss_B[rows] = anchors_R + own_R
        grad_BD[rows], grad_BO[rows] = excess_RK @ student_KD, excess_RO
    return loss_B.mean(), (grad_BD / count, grad_BO / count)


def _row_chunks(count: int, width: int, device: str) -> Iterator[slice]:
    rows = max(1, (_CPU_CHUNK if device == "cpu" else _CHUNK) // width)
    return (slice(start, start + rows) for start in range(0, count, rows))


def _log_probabilities(x_RD: Tensor, anchors_KD: Tensor, own_RO: Tensor) -> tuple[Tensor, Tensor]:
    """Log-softmax over the anchors' and the own logits: (R, K) and (R, O)."""
    logits_RK = x_RD @ anchors_KD.T
    top_R1 = logits_RK.amax(1, keepdim=True)
    logits_RK, own_RO = logits_RK.sub_(top_R1), own_RO - top_R1
    # As logsumexp, which meets denormal numbers where a sharp softmax has a few near keys.
    total_R1 = logits_RK.clamp(min=_LEAST_LOG).exp_().sum(1, keepdim=True).log()
    total_R1 = torch.cat([total_R1, own_RO], 1).logsumexp(1, keepdim=True)
    return logits_RK.sub_(total_R1), own_RO - total_R1


def _divergence_(log_q_RK: Tensor, log_p_RK: Tensor, kl: bool) -> tuple[Tensor, Tensor]:
    """Sum of p log(p / q), or -p log q, over each row, and q - p; overwrites both arguments."""
    p_RK = log_p_RK.clamp_(min=_LEAST_LOG).exp()
    surprise_RK = log_p_RK.sub_(log_q_RK) if kl else log_q_RK.neg()
    loss_R = surprise_RK.mul_(p_RK).sum(1)
    return loss_R, log_q_RK.clamp_(min=_LEAST_LOG).exp_().sub_(p_RK)


class SimilarityLoss(Loss):
    """Base class of losses that compare distributions of cosines.

    Args:
        read: the teacher's vector, ``embedding`` or ``projection``.
        center_teacher: subtract the teacher's mean first.
    """

    family = "similarity distribution"

    def __init__(self, shapes: Shapes, *, read: Read = "embedding", center_teacher: bool = False):
        super().__init__(shapes)
        self.read: Read = read
        self.width = self.teacher_width(read)
        self.center = centering(center_teacher, self.width)

    def keys(self, teacher: Sequence[Representation]) -> list[Tensor]:
        """Return the teacher's unit vectors by view."""
        return [unit(t_BD) for t_BD in self.center(vectors(teacher, self.read))]


class QueueLoss(SimilarityLoss):
    """Base class of losses whose anchors are a queue; keys are added after scoring.

    A subclass sets ``head``, what the student's embedding goes through, and ``bank``, by
    :meth:`make_bank`, with the keys of the teacher's side under the name ``teacher``.

    Attributes:
        own, kl: as for :func:`queue_divergence`.
        init: what the queue holds at first.
    """

    head: nn.Module
    bank: Bank
    own: ClassVar[bool] = False
    kl: ClassVar[bool] = True
    init: ClassVar[Init] = "unit_normal"

    def __init__(
        self, shapes: Shapes, temperature_student: float, temperature_teacher: float, **teacher: Any
    ):
        super().__init__(shapes, **teacher)
        self.temperatures = temperature_student, temperature_teacher

    def make_bank(self, queue: int | None, **widths: int) -> Bank:
        """Build a bank of ``queue`` rows, or of a size that suits the training set."""
        return Bank(queue or default_queue_size(self.shapes.num_samples), self.init, **widths)

    def queries(self, student: Sequence[Representation]) -> Tensor:
        """Return the student's vectors of all views, concatenated."""
        return self.head(torch.cat(vectors(student)))

    def compare(self, s_ND: Tensor, keys: list[Tensor], student_KD: Tensor, bank: Bank) -> Tensor:
        """Divergence of the student's distributions from the teacher's, each over its anchors."""
        anchors = student_KD, bank.teacher
        t_NE = torch.cat(keys)
        return queue_divergence(s_ND, t_NE, *anchors, *self.temperatures, own=self.own, kl=self.kl)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        keys = self.keys(teacher)
        loss = self.compare(self.queries(student), keys, self.bank.teacher, self.bank)
        for view in teacher.distinct:
            self.bank.push(teacher=keys[view])
        return loss


class TargetLoss(QueueLoss):
    """Base class of self-distillation methods; the target can be a frozen teacher instead.

    With ``target="teacher"`` the keys are the teacher's. With ``"momentum"``, as published, they
    are those of the moving averages of the student and of ``head``, which :meth:`set_head` sets,
    and every view of the student but the first learns from the key of the view before it.

    Raises:
        UserError: settings for the teacher's vectors where the teacher is ignored.
    """

    pairing = "other"
    views = 2

    def __init__(
        self, shapes: Shapes, target: Target, momentum: float, *temperatures: float, **teacher: Any
    ):
        super().__init__(shapes, *temperatures, **teacher)
        if target == "momentum":
            if teacher != {"read": "embedding", "center_teacher": False}:
                raise self.fail(
                    "target=momentum ignores the teacher; remove read and center_teacher"
                )
            self.momentum = momentum

    def set_head(self, head: nn.Module) -> None:
        """Set the head of the queries; keys go through its moving average."""
        self.head = head
        self.momentum_head = None if self.momentum is None else momentum_copy(head)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        if self.momentum_head is None:
            return super().forward(student, teacher, batch)
        views = student.distinct
        if len(views) < 2:
            raise self.fail("target=momentum requires two student views; set pairs=same")
        keys = self._moved_keys([student.momentum[view] for view in views[:-1]])
        queries = self.queries([student[view] for view in views[1:]])
        loss = self.compare(queries, keys, self.bank.teacher, self.bank)
        for k_BD in keys:
            self.bank.push(teacher=k_BD)
        return loss

    @torch.no_grad()
    def _moved_keys(self, moved: list[Representation]) -> list[Tensor]:
        assert self.momentum_head is not None
        return [unit(self.momentum_head(k_BD)) for k_BD in vectors(moved)]

    def after_step(self, step: int, num_steps: int) -> None:
        """Update the moving average of the head, as the distiller updates the student's."""
        if self.momentum_head is not None and list(self.head.parameters()):
            update_momentum(self.head, self.momentum_head, self.momentum_at(step, num_steps))
