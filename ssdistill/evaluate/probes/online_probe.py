"""Online linear probe during training; it reads labels and is off by default."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssdistill.data.batch import Batch
from ssdistill.data.image_set import ImageSet
from ssdistill.evaluate.targets import as_labels
from ssdistill.label_free.rows import standardization
from ssdistill.train.observers import Observer
from ssdistill.train.task import Task

MOMENTUM = 0.95
"""Of the running accuracy: what is shown is about the last twenty steps."""
LEARNING_RATE = 2e-3


class OnlineProbe(Observer):
    """Linear classifier on detached embeddings of the first two training views.

    ``probe/online/top1`` is its running accuracy in percent on views it has not yet learned from.
    These are augmented (and, where set, mixed) views of training images, and the encoder
    changes under the classifier: the number shows whether a training gets anywhere, and is not
    to be compared with a probe of the finished encoder. Test images are not looked at.

    The encoder cannot notice: embeddings come without a graph, the classifier starts at zero
    and has an optimizer (Adam) of its own, nothing random is drawn. Features are standardized
    by the batch, so that one learning rate suits every method.

    Args:
        store: the training images; their labels are read here, at once.
        embed_dim: width of the embeddings.
        device: where the embeddings are.

    Raises:
        UserError: labels that are missing, or not one integer per image.
    """

    name = "online_probe"

    def __init__(self, store: ImageSet, embed_dim: int, device: str | torch.device = "cpu"):
        label_N = as_labels(store.labels, torch.empty(len(store), 0), "training labels")
        classes_K, target_N = label_N.unique(return_inverse=True)
        self.target_N = target_N.to(device)
        # As nn.Linear would draw its first weights from torch's generator.
        self.classifier = nn.utils.skip_init(
            nn.Linear, embed_dim, len(classes_K), device=torch.device(device)
        )
        for parameter in self.classifier.parameters():
            nn.init.zeros_(parameter)
        self.optimizer = torch.optim.Adam(self.classifier.parameters(), lr=LEARNING_RATE)
        self.hits = torch.zeros((), device=device)
        self.steps = 0

    def after_step(self, step: int, batch: Batch, task: Task) -> dict[str, Tensor]:
        views = [z_BD.detach().float() for z_BD in task.last_embeddings[:2]]
        z_BD, target_B = torch.cat(views), self.target_N[batch.index_B].repeat(len(views))
        mean_D, scale_D = standardization(z_BD)
        logits_BK = self.classifier((z_BD - mean_D) / scale_D)
        functional.cross_entropy(logits_BK, target_B).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        hit = (logits_BK.argmax(1) == target_B).float().mean()
        self.hits = torch.lerp(hit, self.hits, MOMENTUM)
        self.steps += 1
        # The average began at 0, which has this much weight left.
        return {"probe/online/top1": 100 * self.hits / (1 - MOMENTUM**self.steps)}

    def state_dict(self) -> dict[str, Any]:
        return {
            "classifier": self.classifier.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "hits": self.hits,
            "steps": self.steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo :meth:`state_dict`.

        Raises:
            RuntimeError: another number of classes, or another width.
        """
        self.classifier.load_state_dict(state["classifier"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.hits = state["hits"].to(self.hits)
        self.steps = state["steps"]
