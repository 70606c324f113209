"""PCD: contrast position by position (Huang and Guo, ICCV 2023, arXiv:2211.00218)."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.losses import Shapes
from ssdistill.losses.base.bank import Bank, default_queue_size
from ssdistill.losses.base.contrast import info_nce
from ssdistill.losses.base.maps import MapChoice, MapLoss, MapNames, resize_map, tokens
from ssdistill.models.heads import predictor
from ssdistill.models.representation import Outputs
from ssdistill.settings import Positive, PositiveInt


def positions(pairs: list[tuple[Tensor, Tensor]], head: nn.Module) -> tuple[Tensor, Tensor]:
    """Return one row per map position: the student's through ``head``, and the teacher's."""
    student_tokens = [tokens(resize_map(s_BCHW, t_BCHW.shape[-2:])) for s_BCHW, t_BCHW in pairs]
    teacher_tokens = [tokens(t_BCHW) for _, t_BCHW in pairs]
    s_NC = torch.cat([head(rearrange(s_BNC, "b n c -> (b n) c")) for s_BNC in student_tokens])
    return s_NC, rearrange(torch.cat(teacher_tokens), "b n c -> (b n) c")


class PCD(MapLoss):
    """InfoNCE between positions of the student's map and the teacher's map of another view.

    With z = n(MLP(s)) and t the maps of two views of an image,

    L = -log exp(z_ij·n(t_ij)/T) / (exp(z_ij·n(t_ij)/T) + sum_k exp(z_ij·q_k/T))

    averaged over positions ij, the same in both grids wherever the crops lie, and pairs of views
    (arXiv:2211.00218). The queue holds vectors of whole images, n(mean_ij t_ij), one view's of
    each, that of the last pair; they join it after scoring. Where the grids differ, the
    student's map is brought to the teacher's.

    The MLP works position by position: Linear-BN-ReLU-Linear, twice. The published code also
    turns the teacher's self-supervised head into 1x1 convolutions and compares its output; here
    it is the teacher's map as it is.

    ```yaml
    losses:
      pixels: {kind: pcd, hidden_dim: 1024, temperature: 0.2, weight: 1.0}
    ```

    Args:
        queue: vectors kept (paper: 65536). By default 4096, or half the training images if fewer.
        temperature: T.
        hidden_dim: width of the MLP's two hidden layers.
        maps: ``last``, ``middle``, ``stages``, ``final`` or a list of names, each with an MLP and
            a queue of its own.

    Raises:
        UserError: for a network without feature maps, or without the one named.
    """

    kind = "pcd"
    family = "contrastive"
    paper = "Huang and Guo, ICCV 2023, arXiv:2211.00218"
    pairing = "other"
    views = 2

    def __init__(
        self,
        shapes: Shapes,
        *,
        queue: PositiveInt | None = None,
        temperature: Positive = 0.2,
        hidden_dim: PositiveInt = 4096,
        maps: MapChoice | MapNames = "last",
    ):
        super().__init__(shapes, maps)
        self.temperature = temperature
        widths = {f"map_{i}": pair.teacher_shape[0] for i, pair in enumerate(self.map_pairs)}
        queue = queue or default_queue_size(shapes.num_samples)
        self.heads = nn.ModuleList(
            nn.Sequential(
                predictor(pair.student_shape[0], width, hidden_dim),
                predictor(width, width, hidden_dim),
            )
            for pair, width in zip(self.map_pairs, widths.values(), strict=True)
        )
        self.bank = Bank(queue, "unit_normal", **widths)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        pairs_by_view = [self.pairs_of(s, t) for s, t in zip(student, teacher, strict=True)]
        losses, keys = [], {}
        for i, (name, head) in enumerate(zip(self.bank.names, self.heads, strict=True)):
            s_NC, t_NC = positions([pairs[i] for pairs in pairs_by_view], head)
            losses.append(info_nce(s_NC, t_NC, self.bank[name], self.temperature))
            _, last_BCHW = pairs_by_view[-1][i]
            keys[name] = F.normalize(last_BCHW.float().mean((2, 3)), dim=1)
        self.bank.push(**keys)
        return torch.stack(losses).mean()
