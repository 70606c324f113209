"""Every constant from a paper, pinned beside its citation; our own choices are marked.

A row holds all of a kind's defaults: ``paper`` are those of the paper (or of its authors' code),
``ours`` those that the paper leaves open, or that we set otherwise. A new kind needs a row.

Where ``ours`` differs from a number of the paper:

- ``crd``: weight 1; RepDistiller runs it with 0.8 beside labels.
- ``seed``: teacher temperature 0.01; the authors' default of 1e-4 makes the target one-hot.
- ``disco``: the mean over a batch; the authors' code sums over batch and dimensions.
- ``simclr``: temperature 0.2; the paper tunes it between 0.05 and 1 for each length and batch.
- ``byol``: momentum 0.99, the paper's for 300 epochs and fewer; 0.996 for 1000.
- ``barlow_twins``: the loss as the paper writes it; the authors' code scales it by 0.024.
- ``nnclr``: 65536 supports; the paper's best is 98304.
"""

from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import BaseModel

from ssdistill.data.mixing import MixSettings
from ssdistill.data.recipes import RECIPES, ViewRecipe
from ssdistill.distill.interpolate import InterpolateSettings
from ssdistill.evaluate.settings import EvaluateSettings
from ssdistill.losses import LossSettings
from ssdistill.settings.registry import LOSSES, METHODS, PROTOCOLS, RUNTIMES, STEPS, settings_of
from ssdistill.train.optim import OptimSettings
from ssdistill.train.settings import TrainSettings


@dataclass(frozen=True)
class Row:
    """Constants of one kind.

    Attributes:
        citation: arXiv id, or another name of the paper.
        pairing, views: of a loss; ``views`` of a method are its two recipes.
        multicrop, together: of a method.
        paper: defaults taken from the paper.
        ours: defaults of our own choice.
    """

    citation: str
    views: int | tuple[str, ...]
    pairing: str | tuple[tuple[int, int], ...] = ""
    multicrop: bool = False
    together: bool = False
    paper: dict[str, Any] = field(default_factory=dict)
    ours: dict[str, Any] = field(default_factory=dict)

    @property
    def defaults(self) -> dict[str, Any]:
        assert not self.paper.keys() & self.ours.keys()
        return self.paper | self.ours


# fmt: off
LOSS_ROWS = {
    "ab": Row(
        "1811.03233", pairing="same", views=1,
        paper={"margin": 1.0, "weight": 1.0},
        ours={"maps": "stages"},
    ),
    "at": Row(
        "1612.03928", pairing="same", views=1,
        paper={"power": 2, "weight": 1000.0},
        ours={"maps": "stages"},
    ),
    "attndistill": Row(
        "2210.00944", pairing="same", views=1,
        paper={"attention_weight": 20.0, "temperature": 20.0, "weight": 1.0},
        ours={"maps": "last", "head": "mlp"},
    ),
    "bingo": Row(
        "2107.01691", pairing=((0, 1),), views=2,
        paper={"temperature": 0.2, "hidden_dim": 2048, "warmup_epochs": 11, "weight": 1.0},
        ours={"queue": None, "read": "embedding", "center_teacher": False},
    ),
    "cassle": Row(
        "2112.04215", pairing="same", views=2,
        paper={"hidden_dim": 2048, "temperature": 0.2, "off_diagonal": 0.005, "scale": 0.1,
               "weight": 1.0},
        ours={"variant": "contrastive", "read": "embedding", "center_teacher": False},
    ),
    "cc": Row(
        "1904.01802", pairing="same", views=1,
        paper={"dim": 128, "weight": 0.02},
        ours={"read": "embedding"},
    ),
    "compress": Row(
        "2010.14713", pairing="same", views=1,
        paper={"temperature": 0.04, "momentum": 0.999, "weight": 1.0},
        ours={"variant": "2q_momentum", "queue": None, "center_teacher": False},
    ),
    "cosine": Row(
        "2312.06709", pairing="same", views=1,
        ours={"read": "embedding", "maps": None, "head": "linear", "center_teacher": False,
              "weight": 1.0},
    ),
    "cospress": Row(
        "2411.15239", pairing="same", views=1,
        paper={"compared": "full", "weight": 1.0, "temperatures":
               (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1)},
    ),
    "crd": Row(
        "1910.10699", pairing="same", views=1,
        paper={"dim": 128, "negatives": 16384, "temperature": 0.07, "momentum": 0.5},
        ours={"center_teacher": False, "weight": 1.0},
    ),
    "dino": Row(
        "2104.14294", pairing="other", views=2,
        paper={"targets": "sinkhorn", "temperature_student": 0.1, "temperature_start": 0.04,
               "temperature_teacher": 0.07, "center_momentum": 0.9, "hidden_dim": 2048,
               "bottleneck_dim": 256, "weight": 1.0},
        ours={"logits": "prototypes", "prototypes": None, "temperature_warmup": 0.3},
    ),
    "disco": Row(
        "2104.09124", pairing="same", views=2,
        paper={"temperature": 0.2, "hidden_dim": 2048, "momentum": 0.999, "weight": 1.0},
        ours={"queue": None, "feature_weight": 1.0, "reduction": "mean", "read": "embedding",
              "center_teacher": False},
    ),
    "dist": Row(
        "2205.10536", pairing="same", views=1,
        paper={"beta": 1.0, "gamma": 1.0, "tau": 1.0},
        ours={"head": "linear", "read": "embedding", "weight": 1.0},
    ),
    "dkd": Row(
        "2203.08679", pairing="same", views=1,
        paper={"alpha": 1.0, "beta": 8.0},
        ours={"temperature": None, "logits": "prototypes", "prototypes": None, "scale": 0.08,
              "head": "linear", "weight": 1.0},
    ),
    "dogo": Row(
        "2104.09866", pairing="same", views=2,
        paper={"temperature": 0.1},
        ours={"projection_dim": None, "read": "embedding", "center_teacher": False, "weight":
              100.0},
    ),
    "ega": Row(
        "2211.13264", pairing="same", views=1,
        paper={"node_weight": 1.0, "edge_weight": 0.3},
        ours={"head": "linear", "read": "embedding", "weight": 1.0},
    ),
    "fd": Row(
        "2205.14141", pairing="same", views=1,
        paper={"beta": 2.0},
        ours={"maps": "last", "head": "linear", "weight": 1.0},
    ),
    "fitnet": Row(
        "1412.6550", pairing="same", views=1,
        paper={"weight": 100.0},
        ours={"maps": "middle", "head": "conv"},
    ),
    "fsp": Row(
        "1910.10699", pairing="same", views=1,
        paper={"weight": 50.0},
        ours={"maps": "stages"},
    ),
    "ft": Row(
        "1802.04977", pairing="same", views=1,
        paper={"rate": 0.5, "reconstruction": 0.005, "weight": 200.0},
        ours={"maps": "last"},
    ),
    "gram": Row(
        "2508.10104", pairing="same", views=1,
        paper={"remove_negative": True, "level": "image", "normalize": True},
        ours={"maps": "last", "grid": "teacher", "weight": 1.0},
    ),
    "ibot": Row(
        "2111.07832", pairing="same", views=1,
        paper={
            "targets": "sinkhorn", "masks": "blocks", "images": 0.5, "fraction": (0.1, 0.5),
            "temperature_student": 0.1, "temperature_start": 0.04, "temperature_teacher": 0.07,
            "temperature_warmup": 0.3, "center_momentum": 0.9, "hidden_dim": 2048,
            "bottleneck_dim": 256, "weight": 1.0,
        },
        ours={"prototypes": None},
    ),
    "ickd": Row(
        "2202.03680", pairing="same", views=1,
        ours={"maps": "last", "head": "linear", "weight": 160.0},
    ),
    "infonce": Row(
        "1911.05722", pairing="other", views=2,
        paper={"temperature": 0.2},
        ours={"queue": None, "read": "embedding", "center_teacher": False, "weight": 1.0},
    ),
    "isd": Row(
        "2012.09259", pairing="other", views=2,
        paper={"temperature_student": 0.02, "temperature_teacher": 0.02, "momentum": 0.999,
               "weight": 1.0},
        ours={"target": "teacher", "queue": None, "projection_dim": None, "read": "embedding",
              "center_teacher": False},
    ),
    "kd": Row(
        "1503.02531", pairing="same", views=1,
        ours={"temperature": None, "logits": "prototypes", "prototypes": None, "scale": 0.08,
              "head": "linear", "weight": 1.0},
    ),
    "kdep": Row(
        "2203.05180", pairing="same", views=1,
        paper={"temperature": 0.1, "exponent": 0.3333333333333333, "weight": 3.0},
    ),
    "kdsvd": Row(
        "1807.06819", pairing="same", views=1,
        paper={"k": 1, "weight": 1.0},
        ours={"maps": "stages", "fix_signs": True, "head": "linear"},
    ),
    "koleo": Row(
        "1806.03198", pairing="same", views=1,
        paper={"neighbors": 1, "weight": 0.1},
    ),
    "lightly": Row(
        "2010.14713", pairing="same", views=1,
        paper={"temperature": 0.07, "temperature_local": 0.07, "weight": 1.0},
        ours={"queue": None, "local_weight": 0.0, "maps": "last", "center_teacher": False},
    ),
    "lightly_v2": Row(
        "1412.6550", pairing="same", views=1,
        paper={"blocks": None, "depth": 1, "weight": 1.0},
    ),
    "mgd": Row(
        "2205.01529", pairing="same", views=1,
        paper={"mask": "channels", "masked": 0.15, "weight": 7e-05},
        ours={"maps": "last"},
    ),
    "mse": Row(
        "2010.14713", pairing="same", views=1,
        ours={"read": "embedding", "maps": None, "head": "linear", "normalize": False,
              "center_teacher": False, "weight": 1.0},
    ),
    "nst": Row(
        "1707.01219", pairing="same", views=1,
        paper={"weight": 50.0},
        ours={"maps": "stages"},
    ),
    "ofd": Row(
        "1904.01866", pairing="same", views=1,
        paper={"weight": 0.001},
        ours={"maps": "stages"},
    ),
    "pcd": Row(
        "2211.00218", pairing="other", views=2,
        paper={"temperature": 0.2, "hidden_dim": 4096, "weight": 1.0},
        ours={"queue": None, "maps": "last"},
    ),
    "pkt": Row(
        "1803.10837", pairing="same", views=1,
        paper={"weight": 30000.0},
        ours={"read": "embedding"},
    ),
    "ressl": Row(
        "2107.09282", pairing="other", views=2,
        paper={"temperature_student": 0.1, "temperature_teacher": 0.04, "dim": 256, "momentum":
               0.99, "weight": 1.0},
        ours={"target": "teacher", "queue": None, "hidden_dim": None, "read": "embedding",
              "center_teacher": False},
    ),
    "proteus": Row(
        "2407.10366", pairing="same", views=1,
        paper={
            "feature_weight": 1.0, "patch_weight": 1.0, "images": 0.5, "fraction": 0.5,
            "weight": 1.0,
        },
    ),
    "reviewkd": Row(
        "2104.09044", pairing="same", views=1,
        paper={"weight": 5.0},
        ours={"maps": "stages", "width": None},
    ),
    "rkd": Row(
        "1904.05068", pairing="same", views=1,
        paper={"distance_weight": 25.0, "angle_weight": 50.0, "weight": 1.0},
        ours={"chunk": 16, "read": "embedding"},
    ),
    "seed": Row(
        "2101.04731", pairing="same", views=1,
        paper={"temperature_student": 0.2, "weight": 1.0},
        ours={"queue": None, "temperature_teacher": 0.01, "read": "embedding", "center_teacher":
              False, "small_views": 0},
    ),
    "simdis": Row(
        "2106.11304", pairing="same", views=2,
        paper={"dim": 256, "hidden_dim": 4096, "momentum": 0.99, "weight": 1.0},
        ours={"targets": 7, "read": "embedding"},
    ),
    "simreg": Row(
        "2201.05131", pairing="same", views=1,
        paper={"depth": 4, "weight": 1.0},
        ours={"center_teacher": False},
    ),
    "smooth_l1": Row(
        "1504.08083", pairing="same", views=1,
        paper={"beta": 1.0},
        ours={"read": "embedding", "maps": None, "head": "linear", "normalize": False,
              "center_teacher": False, "weight": 1.0},
    ),
    "sp": Row(
        "1907.09682", pairing="same", views=1,
        paper={"weight": 3000.0},
        ours={"maps": "last"},
    ),
    "srd": Row(
        "2303.11098", pairing="same", views=1,
        paper={"exponent": 4.0, "weight": 2.0},
    ),
    "srrl": Row(
        "2003.04289", pairing="same", views=1,
        paper={"weight": 1.0},
        ours={"maps": "last", "head": "conv"},
    ),
    "ssim": Row(
        "2211.13133", pairing="same", views=1,
        ours={"maps": "stages", "head": "linear", "window": 11, "weight": 1.0},
    ),
    "sskd": Row(
        "2006.07114", pairing="same", views=1,
        paper={"temperature": 0.5, "ratio": 0.75, "weight": 10.0},
        ours={"read": "embedding", "center_teacher": False},
    ),
    "theia": Row(
        "2407.20179", pairing="same", views=1,
        paper={"cosine_weight": 0.9, "smooth_l1_weight": 0.1, "weight": 1.0},
        ours={"maps": "last", "head": "mlp", "summary_weight": 0.0, "statistics_end": 0.001},
    ),
    "unic": Row(
        "2408.05088", pairing="same", views=1,
        paper={"cosine_weight": 0.5, "smooth_l1_weight": 0.5, "statistics_end": 0.001, "weight":
               1.0},
        ours={"maps": "last", "head": "mlp"},
    ),
    "vid": Row(
        "1904.05835", pairing="same", views=1,
        paper={"initial_variance": 5.0, "weight": 1.0},
        ours={"maps": "stages"},
    ),
}
# fmt: on
# fmt: off
METHOD_ROWS = {
    "autoencoder": Row(
        "10.1145/1390156.1390294", views=("weak",),
        ours={"noise": 0.1, "mask": 0.25, "mask_grid": 8, "decoder_width": 256},
    ),
    "barlow_twins": Row(
        "2103.03230", views=("byol_a", "byol_b"),
        paper={"off_diagonal_weight": 0.0051, "projector": {"hidden_dim": 8192, "output_dim":
               8192, "depth": 3, "batch_norm": "hidden", "last_affine": True}},
        ours={"scale": 1.0},
    ),
    "byol": Row(
        "2006.07733", views=("byol_a", "byol_b"),
        paper={"momentum_end": 1.0, "projector": {"hidden_dim": 4096, "output_dim": 256, "depth":
               2, "batch_norm": "hidden", "last_affine": True}, "predictor": {"hidden_dim": 4096,
               "output_dim": None, "depth": 2, "batch_norm": "hidden", "last_affine": True}},
        ours={"momentum": 0.99},
    ),
    "dino": Row(
        "2104.14294", views=("byol_a", "byol_b"), multicrop=True, together=True,
        paper={"num_prototypes": 65536, "temperature_student": 0.1, "temperature_teacher": 0.04,
               "temperature_teacher_start": 0.04, "centering": "center", "center_momentum": 0.9,
               "momentum": 0.996, "momentum_end": 1.0, "projector": {"hidden_dim": 2048,
               "output_dim": 256, "depth": 3, "batch_norm": "none", "last_affine": True}},
        ours={"temperature_warmup": 0.1, "freeze_last": 0.01},
    ),
    "lejepa": Row(
        "2511.08544", views=("lejepa", "lejepa"), multicrop=True, together=True,
        paper={"form": "authors", "sigreg_weight": None, "directions": None,
               "projector": {"hidden_dim": 2048, "output_dim": 16, "depth": 3,
               "batch_norm": "hidden", "last_affine": True}},
    ),
    "mae": Row(
        "2111.06377", views=("weak",),
        paper={"mask_ratio": 0.75, "decoder_dim": 512, "decoder_depth": 8, "decoder_heads": 16},
        ours={"normalize_targets": True},
    ),
    "moco": Row(
        "2003.04297", views=("strong", "strong"),
        paper={"temperature": 0.2, "queue": 65536, "momentum": 0.999, "momentum_end": 0.999,
               "bn_splits": 8, "projector": {"hidden_dim": None, "output_dim": 128, "depth": 2,
               "batch_norm": "none", "last_affine": True}},
        ours={"symmetric": False},
    ),
    "moco_v3": Row(
        "2104.02057", views=("byol_a", "byol_b"),
        paper={"temperature": None, "momentum": 0.99, "momentum_end": 1.0,
               "freeze_patch_embedding": True, "projector": {"hidden_dim": 4096, "output_dim":
               256, "depth": None, "batch_norm": "all", "last_affine": False}, "predictor":
               {"hidden_dim": 4096, "output_dim": None, "depth": 2, "batch_norm": None,
               "last_affine": False}},
    ),
    "nnclr": Row(
        "2104.14548", views=("byol_a", "byol_b"),
        paper={"temperature": 0.1, "projector": {"hidden_dim": 2048, "output_dim": 256, "depth":
               3, "batch_norm": "all", "last_affine": True}, "predictor": {"hidden_dim": 4096,
               "output_dim": None, "depth": 2, "batch_norm": "hidden", "last_affine": True}},
        ours={"queue": 65536},
    ),
    "simclr": Row(
        "2002.05709", views=("simclr", "simclr"), together=True,
        paper={"projector": {"hidden_dim": None, "output_dim": 128, "depth": 2, "batch_norm":
               "all", "last_affine": True}},
        ours={"temperature": 0.2},
    ),
    "simsiam": Row(
        "2011.10566", views=("strong", "strong"),
        paper={"projector": {"hidden_dim": 2048, "output_dim": 2048, "depth": 3, "batch_norm":
               "all", "last_affine": False}, "predictor": {"hidden_dim": 512, "output_dim": None,
               "depth": 2, "batch_norm": "hidden", "last_affine": True}},
    ),
    "swav": Row(
        "2006.09882", views=("simclr", "simclr"), multicrop=True, together=True,
        paper={"temperature": 0.1, "epsilon": 0.05, "sinkhorn_iterations": 3, "num_prototypes":
               3000, "projector": {"hidden_dim": 2048, "output_dim": 128, "depth": 2,
               "batch_norm": "hidden", "last_affine": True}},
        ours={"queue": 0, "queue_start": 0.075, "freeze_prototypes": 0.005},
    ),
    "vicreg": Row(
        "2105.04906", views=("byol_a", "byol_b"),
        paper={"invariance_weight": 25.0, "variance_weight": 25.0, "covariance_weight": 1.0,
               "projector": {"hidden_dim": 8192, "output_dim": 8192, "depth": 3, "batch_norm":
               "hidden", "last_affine": True}},
    ),
}
# fmt: on

_COLOR = {"jitter": 0.8, "grayscale": 0.2}
_MOCO = {**_COLOR, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
_SIMCLR = {**_COLOR, "brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
_BYOL = {**_COLOR, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
PLAIN = {
    "ratio": (3 / 4, 4 / 3),
    "flip": 0.5,
    **dict.fromkeys(("jitter", "brightness", "contrast", "saturation", "hue", "grayscale"), 0.0),
    "blur": 0.0,
    "blur_sigma": (0.1, 2.0),
    "blur_kernel": None,
    "solarize": 0.0,
    "solarize_threshold": 0.5,
    "size": None,
    "count": 1,
}
"""What a recipe does where its row says nothing: torchvision's crop and flip."""
RECIPE_ROWS = {
    # name: (citation, numbers)
    "weak": ("2003.04297, geometry alone", {"scale": (0.2, 1.0)}),
    "crop_flip": ("1409.4842, as in torchvision's reference", {"scale": (0.08, 1.0)}),
    "strong": ("2003.04297", {"scale": (0.2, 1.0), **_MOCO, "blur": 0.5}),
    "simclr": ("2002.05709", {"scale": (0.08, 1.0), **_SIMCLR, "blur": 0.5}),
    "byol_a": ("2006.07733, table 6", {"scale": (0.08, 1.0), **_BYOL, "blur": 1.0}),
    "byol_b": (
        "2006.07733, table 6",
        {"scale": (0.08, 1.0), **_BYOL, "blur": 0.1, "solarize": 0.2},
    ),
    "multicrop_small": ("2104.14294", {"scale": (0.05, 0.4), **_BYOL, "blur": 0.5}),
    "lejepa": (
        "2511.08544, README of the authors",
        {"scale": (0.3, 1.0), **_BYOL, "blur": 0.5, "solarize": 0.2},
    ),
    "lejepa_small": (
        "2511.08544, README of the authors",
        {"scale": (0.05, 0.3), **_BYOL, "blur": 0.5, "solarize": 0.2},
    ),
    "digits": (
        "ours",
        {"scale": (0.5, 1.0), "flip": 0.0, "jitter": 0.8, "brightness": 0.4, "contrast": 0.4},
    ),
    "eval": ("ours", {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": 0.0}),
}

OPTIM = {
    "kind": "adamw", "lr": 2e-3, "weight_decay": 1e-4, "weight_decay_end": None,
    "decay_all": False, "momentum": 0.9, "betas": (0.9, 0.999), "trust_coefficient": 1e-3,
    "clip_lr": False, "clip_grad_norm": None, "schedule": "cosine", "warmup": 0.05,
    "lr_start": None, "lr_end": 0.0, "milestones": (0.6, 0.8), "gamma": 0.1, "decay": 9.0,
    "constant": (),
}  # fmt: skip
SETTINGS_ROWS = {
    # Ours, but for AdamW's betas (1711.05101) and LARS's eta (1708.03888).
    OptimSettings: OPTIM,
    TrainSettings: {
        "steps": None, "epochs": None, "batch_size": 256, "views": None, "seed": None,
        "select": "last", "select_every": 0.05,
    },
    LossSettings: {
        "weight": 1.0, "schedule": "constant", "warmup": 0.0, "weight_end": 0.0, "pairs": None,
        "teacher": None,
    },
    # mixup 1710.09412, with the alpha of lightly-train and of 2106.05237.
    MixSettings: {"kind": "mixup", "alpha": 1.0, "probability": 1.0},
}  # fmt: skip

KNN_PRESETS = {
    "dinov2": ("2304.07193", {"k": 20, "temperature": 0.07, "ks": (10, 20, 100, 200)}),
    "instdisc": ("1805.01978", {"k": 200, "temperature": 0.07}),
    "lightly": ("lightly 1.6 utils/benchmarking", {"k": 200, "temperature": 0.1}),
    "compress": ("2010.14713", {"k": 1}),
    "simreg": ("2201.05131", {"k": 1}),
    "solo_learn": ("solo-learn", {"k": 20, "distance": "euclidean", "weights": "inverse"}),
}
SUBSETS = {"1pct": ("2002.05709", 0.01), "10pct": ("2002.05709", 0.1)}
LIGHTLY_FINETUNING = {
    "epochs": 30, "batch_size": 256, "optimizer": "sgd", "lr": 0.05, "weight_decay": 0.0,
    "warmup": 0.0, "lr_end": 1e-3, "layer_decay": 1.0, "head_init": "uniform",
}  # fmt: skip
PROTOCOL_ROWS = {
    # kind: (citation, what a protocol without any setting does)
    "cluster": ("2005.12320", {"split": "test", "clusters": None, "restarts": 10, "seed": 0}),
    "finetune": ("2111.06377", {"fraction": 1.0, "seed": 0}),
    "knn": (
        "1805.01978",
        {"k": 20, "temperature": 0.07, "distance": "cosine", "weights": "softmax"},
    ),
    "linear": (
        "ours; held-out strength as in dinov3/eval/log_regression.py",
        {"strengths": (1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5, 1e-6), "holdout": 0.1, "folds": None},
    ),
    "linear_sgd": ("2304.07193", {"momentum": 0.9, "weight_decay": 0.0, "holdout": 0.1}),
    "low_shot": ("2002.05709, frozen", {"seed": 0}),
    "retrieval": ("2003.08505", {"gallery": "train"}),
    "robust": ("1903.12261", {"severities": (1, 2, 3, 4, 5), "images": 2000, "seed": 0}),
    "transfer": ("1805.08974", None),
}
STEP_ROWS = {
    # kind: (citation, settings; ours unless a citation stands beside one)
    "export": ("ours", {"runtime": "onnxruntime", "uint8": False, "tolerance": 1e-3}),
    "lowbit": (
        "2106.08295",
        {"bits": 4, "clip": "mse", "per_channel": True, "symmetric": False, "images": 256},
    ),
    "lowrank": ("1505.06798", {"method": "data", "round_to": 8, "images": 256}),
    "prune": (
        "2301.12900",
        {"criterion": "l2", "scope": "inner", "round_to": 8, "rounds": 1, "images": 256},
    ),
    "quantize": (
        "1712.05877",
        {
            "mode": "static",
            "scheme": "auto",
            "calibration": "minmax",
            "percentile": 99.999,
            "calibration_images": 256,
            "check_images": 256,
            "min_cosine": 0.8,
            "min_cka": 0.8,
        },
    ),
    "recalibrate": ("2007.02491", {"images": 512, "batch_size": 64}),
    "recover": ("1506.02626", {"batch_size": 256, "target": "auto", "rewind": "none"}),
    "refit": ("1707.06168", {"images": 384, "held_out": 0.25, "depthwise": True, "streams": True}),
    "restore": ("ours", {}),
    "search": ("1911.03852", {"damage": "cosine", "images": 128, "refit": True, "front": 4}),
    "share": ("1510.00149", {"bits": 5, "per": "tensor", "across": "none"}),
    "zeros": ("1506.02626", {"criterion": "magnitude", "scope": "global", "schedule": "cubic"}),
}


def plain(value: Any) -> Any:
    """Settings within settings as dictionaries."""
    if not isinstance(value, BaseModel):
        return value
    return {name: plain(getattr(value, name)) for name in type(value).model_fields}


def defaults_of(schema: type[BaseModel]) -> dict[str, Any]:
    """Defaults by setting; without those of required settings."""
    fields = schema.model_fields.items()
    return {name: plain(f.default) for name, f in fields if not f.is_required()}


def own_defaults(registry: Any, kind: str, base: type[BaseModel]) -> dict[str, Any]:
    """Defaults of what a kind takes beside the shared settings."""
    found = defaults_of(registry.schema(kind))
    return {k: v for k, v in found.items() if k != "kind" and k not in base.model_fields}


@pytest.mark.parametrize(
    ("registry", "rows"),
    [
        (LOSSES, LOSS_ROWS),
        (METHODS, METHOD_ROWS),
        (PROTOCOLS, PROTOCOL_ROWS),
        (STEPS, STEP_ROWS),
    ],
)
def test_every_kind_has_a_row(registry, rows):
    assert set(registry.classes) == set(rows)


def test_every_recipe_has_a_row():
    assert set(RECIPES) == set(RECIPE_ROWS)


@pytest.mark.parametrize("kind", LOSS_ROWS)
def test_a_loss_has_the_constants_of_its_source(kind):
    row, loss = LOSS_ROWS[kind], LOSSES[kind]
    assert (loss.pairing, loss.views) == (row.pairing, row.views)
    weight = LOSSES.schema(kind).model_fields["weight"].default
    assert own_defaults(LOSSES, kind, LossSettings) | {"weight": weight} == row.defaults
    assert row.citation in loss.paper


@pytest.mark.parametrize("kind", METHOD_ROWS)
def test_a_method_has_the_constants_of_its_source(kind):
    row, method = METHOD_ROWS[kind], METHODS[kind]
    assert (method.recipes, method.multicrop, method.together) == (
        *(row.views, row.multicrop, row.together),
    )
    assert own_defaults(METHODS, kind, TrainSettings) == row.defaults
    assert row.citation in method.paper
    assert defaults_of(METHODS.schema(kind))["optim"] == OPTIM


@pytest.mark.parametrize("name", RECIPE_ROWS)
def test_a_recipe_has_the_numbers_of_its_source(name):
    assert RECIPES[name].model_dump() == PLAIN | RECIPE_ROWS[name][1]


def test_a_recipe_without_numbers_is_weak():
    assert ViewRecipe().model_dump() == PLAIN | {"scale": (0.2, 1.0)}


@pytest.mark.parametrize("schema", SETTINGS_ROWS)
def test_shared_settings_have_their_defaults(schema):
    found, row = defaults_of(schema), SETTINGS_ROWS[schema]
    assert {name: found[name] for name in row} == row


def test_a_training_without_an_optimizer_has_the_shared_one():
    assert defaults_of(TrainSettings)["optim"] == OPTIM


@pytest.mark.parametrize("kind", PROTOCOL_ROWS)
def test_a_protocol_without_settings_does_what_its_row_says(kind):
    row = PROTOCOL_ROWS[kind][1]
    if row is None:
        assert PROTOCOLS.schema(kind).model_fields["datasets"].is_required()
        return
    found = settings_of(PROTOCOLS.build(PROTOCOLS.schema(kind)(kind=kind)))
    assert {name: found[name] for name in row} == row


@pytest.mark.parametrize("preset", KNN_PRESETS)
def test_a_preset_of_knn_has_the_numbers_of_its_source(preset):
    numbers = KNN_PRESETS[preset][1]
    assert PROTOCOLS["knn"].presets[preset] == numbers
    made = settings_of(PROTOCOLS["knn"](preset=preset))
    assert {name: made[name] for name in numbers} == numbers


def test_presets_that_have_no_row_are_none():
    assert set(PROTOCOLS["knn"].presets) == set(KNN_PRESETS)
    assert set(PROTOCOLS["low_shot"].presets) == set(SUBSETS)
    assert set(PROTOCOLS["finetune"].presets) == {"lightly", *SUBSETS}
    assert PROTOCOLS["finetune"].presets["lightly"] == LIGHTLY_FINETUNING


@pytest.mark.parametrize("kind", ["finetune", "low_shot"])
@pytest.mark.parametrize("preset", SUBSETS)
def test_subsets_of_labels_are_simclrs(kind, preset):
    assert settings_of(PROTOCOLS[kind](preset=preset))["fraction"] == SUBSETS[preset][1]


@pytest.mark.parametrize("kind", STEP_ROWS)
def test_a_step_has_the_defaults_of_its_row(kind):
    citation, row = STEP_ROWS[kind]
    found = defaults_of(STEPS.schema(kind))
    assert {name: found[name] for name in row} == row
    assert citation == "ours" or citation in STEPS[kind].paper


def test_what_is_evaluated_unless_something_is_said():
    found = EvaluateSettings()
    assert {protocol.kind for protocol in found.protocols} == {"linear", "knn", "low_shot"}
    assert InterpolateSettings.model_fields.keys() >= {"alpha"}
    assert RUNTIMES["openvino"]().weights == "fp32"
