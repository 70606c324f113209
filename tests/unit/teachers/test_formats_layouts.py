"""Checkpoints in other projects' layouts compute what the originals compute."""

import copy
from argparse import Namespace

import pytest
import timm
import torch
from lightly.models.modules import BYOLProjectionHead, DINOProjectionHead
from lightly.models.resnet import ResNetGenerator
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from ssdistill.artifacts.artifact import load_encoder, save_encoder
from ssdistill.errors import UserError
from ssdistill.models.spec import IMAGENET_MEAN, IMAGENET_STD, EncoderSettings
from ssdistill.teachers import ImageSpec
from ssdistill.teachers.checkpoint import Checkpoint
from ssdistill.teachers.formats.heads import build_head

IMAGE_SPEC = ImageSpec(image_size=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
OWN = (IMAGE_SPEC.mean, IMAGE_SPEC.std)
IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
NOTHING = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
SHALLOW = EncoderSettings(args={"layers": [1, 1, 1, 1]})


def lively(net):
    """In eval mode, with batch norms that have seen something."""
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.3)
    return net.eval()


def resnet(small=True, padding=1, fc=None):
    net = ResNet(BasicBlock, [1, 1, 1, 1])
    if small:
        net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, padding, bias=False), nn.Identity()
    net.fc = fc or nn.Identity()
    return lively(net)


def mlp(*layers):
    return lively(nn.Sequential(*layers))


def byol_head(width=512):
    return mlp(nn.Linear(width, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 8))


def simclr_head(bias=True):
    return mlp(nn.Linear(512, 24, bias), nn.ReLU(), nn.Linear(24, 8, bias))


def named(**modules):
    """The state of modules as attributes of one network."""
    return {
        f"{name.replace('__', '.')}.{key}": value
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }


def solo_learn():
    net, head = resnet(padding=2), byol_head()
    state = named(
        backbone=net,
        projector=head,
        classifier=nn.Linear(512, 10),
        momentum_backbone=resnet(padding=2),
        momentum_projector=byol_head(),
        predictor=byol_head(8),
    )
    saved = {"state_dict": state, "epoch": 3, "hyper_parameters": Namespace(method="byol")}
    return saved, net, head, OWN, "solo-learn"


def solo_learn_moco_v2():
    net, head = resnet(small=False), simclr_head()
    state = named(backbone=net, projector=head, classifier=nn.Linear(512, 10))
    state["queue"] = torch.randn(2, 8, 16)
    return {"state_dict": state}, net, head, IMAGENET, "solo-learn"


def solo_learn_simsiam():
    net = resnet(padding=2)
    head = mlp(
        nn.Linear(512, 24, bias=False), nn.BatchNorm1d(24), nn.ReLU(),
        nn.Linear(24, 24, bias=False), nn.BatchNorm1d(24), nn.ReLU(),
        nn.Linear(24, 8), nn.BatchNorm1d(8, affine=False),
    )  # fmt: skip
    state = named(backbone=net, projector=head, classifier=nn.Linear(512, 10))
    return {"state_dict": state}, net, head, OWN, "solo-learn"


def lightly_benchmark():
    net, head = resnet(), lively(BYOLProjectionHead(512, 24, 8))
    state = named(backbone=net, projection_head=head, prediction_head=byol_head(8),
                  online_classifier__linear=nn.Linear(512, 10), teacher_backbone=resnet(),
                  teacher_projection_head=lively(BYOLProjectionHead(512, 24, 8)))  # fmt: skip
    return {"state_dict": state}, net, head, IMAGENET, "lightly"


def lightly_sequence():
    net, head = resnet(), lively(BYOLProjectionHead(512, 24, 8))
    children = nn.Sequential(*list(net.children())[:-1])
    return named(backbone=children, projection_head=head), net, head, IMAGENET, "lightly"


def lightly_own_resnet():
    net, head = ResNetGenerator("resnet-9"), lively(BYOLProjectionHead(512, 24, 8))
    net.linear = nn.Identity()
    return named(backbone=lively(net), projection_head=head), net, head, IMAGENET, "lightly"


def lightly_dino():
    net, head = resnet(), lively(DINOProjectionHead(512, 24, 8, 16, batch_norm=True))
    state = named(student_backbone=resnet(), student_head=DINOProjectionHead(512, 24, 8, 16),
                  teacher_backbone=net, teacher_head=head)  # fmt: skip
    project = lambda h: nn.functional.normalize(head.layers(h), dim=-1)  # noqa: E731
    return {"state_dict": state}, net, project, IMAGENET, "lightly"


def lightly_moco():
    net, head = resnet(), lively(BYOLProjectionHead(512, 24, 8))
    state = named(backbone=net, projection_head=head, query_backbone=resnet(),
                  query_projection_head=BYOLProjectionHead(512, 24, 8))  # fmt: skip
    return {"state_dict": state}, net, head, IMAGENET, "lightly"


def _moco(head):
    net = resnet(small=False, fc=head)
    state = named(module__encoder_q=net, module__encoder_k=resnet(small=False, fc=head))
    state |= {"module.queue": torch.randn(8, 16), "module.queue_ptr": torch.zeros(1)}
    saved = {"epoch": 200, "arch": "resnet18", "state_dict": state, "optimizer": {"state": {}}}
    without_head = copy.deepcopy(net)
    without_head.fc = nn.Identity()
    return saved, without_head, head, IMAGENET, "moco"


def moco_v1():
    return _moco(nn.Linear(512, 8))


def moco_v2():
    return _moco(simclr_head())


def moco_v3():
    head = mlp(nn.Linear(512, 24, bias=False), nn.BatchNorm1d(24), nn.ReLU(),
               nn.Linear(24, 8, bias=False), nn.BatchNorm1d(8, affine=False))  # fmt: skip
    net = resnet(small=False, fc=head)
    state = named(module__base_encoder=net, module__momentum_encoder=resnet(False, fc=byol_head()),
                  module__predictor=byol_head(8))  # fmt: skip
    without_head = copy.deepcopy(net)
    without_head.fc = nn.Identity()
    return {"state_dict": state}, without_head, head, IMAGENET, "moco"


def simclr_sthalles():
    head = simclr_head()
    net = resnet(small=False, fc=head)
    without_head = copy.deepcopy(net)
    without_head.fc = nn.Identity()
    return {"state_dict": named(backbone=net)}, without_head, head, NOTHING, "simclr"


def simclr_spijkervet():
    net, head = resnet(small=False), simclr_head(bias=False)
    return named(encoder=net, projector=head), net, head, NOTHING, "simclr"


def byol_lucidrains():
    net, head = resnet(small=False, fc=nn.Linear(512, 10)), byol_head()
    state = named(net=net, online_encoder__net=net, online_encoder__projector=head,
                  target_encoder__net=resnet(False), target_encoder__projector=byol_head(),
                  online_predictor=byol_head(8))  # fmt: skip
    without_fc = copy.deepcopy(net)
    without_fc.fc = nn.Identity()
    return state, without_fc, head, IMAGENET, "byol"


def byol_yaox12():
    net, head = resnet(small=False), byol_head()
    children = nn.Sequential(*list(net.children())[:-1])
    layers = {"l1": head[0], "bn1": head[1], "l2": head[3]}
    state = named(module__online_network__encoder=children)
    state |= named(**{f"module__online_network__projetion__{k}": v for k, v in layers.items()})
    state |= named(module__target_network__encoder=children, module__predictor=byol_head(8))
    return {"model": state, "steps": 1, "config": {"seed": 1}}, net, head, IMAGENET, "byol"


def byol_sthalles():
    net, head = resnet(small=False), byol_head()
    children = nn.Sequential(*list(net.children())[:-1])
    online = named(encoder=children, projetion__net=head)
    target = named(encoder=nn.Sequential(*list(resnet(False).children())[:-1]))
    saved = {"online_network_state_dict": online, "target_network_state_dict": target,
             "optimizer_state_dict": {"state": {0: {"momentum": torch.zeros(3)}}}}  # fmt: skip
    return saved, net, head, IMAGENET, "byol"


def _vissl(head):
    net = resnet(small=False)
    trunk = {f"_feature_blocks.{k}": v for k, v in net.state_dict().items()}
    model = {"trunk": trunk, "heads": head}
    saved = {"classy_state_dict": {"base_model": {"meta": {}, "model": model}, "optimizer": {}}}
    return saved, net, IMAGENET, "vissl"


def vissl_simclr():
    head = simclr_head()
    saved, net, *rest = _vissl({"0.clf.0.weight": head[0].weight, "0.clf.0.bias": head[0].bias,
                                "1.clf.0.weight": head[2].weight,
                                "1.clf.0.bias": head[2].bias})  # fmt: skip
    return saved, net, head, *rest


def vissl_swav():
    head = byol_head()
    tensors = {f"0.projection_head.{k}": v for k, v in head.state_dict().items()}
    saved, net, *rest = _vissl({**tensors, "0.prototypes0.weight": torch.randn(16, 8)})
    return saved, net, head, *rest


def torchvision_resnet():
    net = resnet(small=False, fc=nn.Linear(512, 10))
    without_fc = copy.deepcopy(net)
    without_fc.fc = nn.Identity()
    return net.state_dict(), without_fc, None, IMAGENET, "torchvision"


def timm_training_with_average():
    state = timm.create_model("resnet18", layers=(1, 1, 1, 1)).state_dict()
    net = lively(timm.create_model("resnet18", layers=(1, 1, 1, 1)))
    saved = {"arch": "resnet18", "args": Namespace(lr=1), "state_dict": state,
             "state_dict_ema": {f"module.{k}": v for k, v in net.state_dict().items()}}  # fmt: skip
    net.fc = nn.Identity()
    return saved, net, None, IMAGENET, "timm"


LAYOUTS = [
    solo_learn, solo_learn_moco_v2, solo_learn_simsiam, lightly_benchmark, lightly_sequence,
    lightly_own_resnet, lightly_dino, lightly_moco, moco_v1, moco_v2, moco_v3, simclr_sthalles,
    simclr_spijkervet, byol_lucidrains, byol_yaox12, byol_sthalles, vissl_simclr, vissl_swav,
    torchvision_resnet, timm_training_with_average,
]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
def test_backbone_and_projector_compute_what_the_originals_do(layout, tmp_path):
    torch.manual_seed(0)
    saved, net, head, (mean, std), name = layout()
    torch.save(saved, tmp_path / "weights.pth")
    teacher = Checkpoint(path=str(tmp_path / "weights.pth"), encoder=SHALLOW)
    encoder, notices = teacher.load(IMAGE_SPEC)
    x_BCHW = torch.rand(3, 3, 32, 32)
    to_column = lambda values: torch.tensor(values).view(1, 3, 1, 1)  # noqa: E731
    with torch.no_grad():
        wanted_BD = net((x_BCHW - to_column(mean)) / to_column(std))
        embedding_BD = encoder(x_BCHW).embedding_BD
        torch.testing.assert_close(embedding_BD, wanted_BD, rtol=1e-4, atol=1e-5)
        assert notices[0].startswith(f"{name}, ")
        if head is None:
            assert encoder.projector is None
        else:
            found_BP = encoder.projector(embedding_BD)
            torch.testing.assert_close(found_BP, head(wanted_BD), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("layout", "branch", "prefix"),
    [
        (solo_learn, "momentum", "momentum_backbone."),
        (lightly_benchmark, "teacher", "teacher_backbone."),
        (lightly_moco, "online", "query_backbone."),
        (lightly_moco, "momentum", "backbone."),
        (lightly_dino, "student", "student_backbone."),
        (moco_v2, "momentum", "module.encoder_k."),
        (byol_lucidrains, "teacher", "target_encoder.net."),
        (timm_training_with_average, "online", ""),
    ],
)
def test_the_other_network_can_be_asked_for(layout, branch, prefix, tmp_path):
    saved = layout()[0]
    torch.save(saved, tmp_path / "weights.pth")
    teacher = Checkpoint(path=str(tmp_path / "weights.pth"), encoder=SHALLOW, branch=branch)
    encoder, notices = teacher.load(IMAGE_SPEC)
    name = prefix + "layer1.0.conv1.weight"
    assert torch.equal(encoder.net.layer1[0].conv1.weight, saved.get("state_dict", saved)[name])
    wanted = {"teacher": "momentum", "student": "online"}.get(branch, branch)
    assert f", {wanted} network: " in notices[0]
    assert (encoder.projector is None) == (layout is timm_training_with_average)


def test_lightlys_resnet_without_its_first_relu_is_refused(tmp_path):
    children = nn.Sequential(*list(ResNetGenerator("resnet-9").children())[:-1])
    torch.save(named(backbone=children), tmp_path / "weights.pth")
    teacher = Checkpoint(path=str(tmp_path / "weights.pth"), encoder=SHALLOW)
    with pytest.raises(UserError, match=r"no ReLU after its first batch norm"):
        teacher.load(IMAGE_SPEC)


def test_what_was_loaded_can_be_saved_and_opened_again(tmp_path):
    torch.save(lightly_dino()[0], tmp_path / "weights.ckpt")
    encoder, _ = Checkpoint(path=str(tmp_path / "weights.ckpt"), encoder=SHALLOW).load(IMAGE_SPEC)
    save_encoder(encoder, tmp_path / "saved")
    again = load_encoder(tmp_path / "saved")
    encoder.project = again.project = True
    x_BCHW = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(encoder(x_BCHW).projection_BP, again(x_BCHW).projection_BP)


def test_a_projector_is_built_in_eval_mode():
    norm = nn.BatchNorm1d(4).state_dict()
    state = {"0.weight": torch.rand(4, 3), **{f"1.{name}": t for name, t in norm.items()}}
    head = build_head(state, 3)
    assert not any(layer.training for layer in head.modules())
    assert head(torch.rand(1, 3)).shape == (1, 4)
