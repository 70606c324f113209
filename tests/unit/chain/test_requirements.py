import pytest

from ssdistill.chain import run
from ssdistill.chain.requirements import check_networks, chosen_stems
from ssdistill.errors import UserError


def test_what_auto_stands_for_is_said(make_workspace):
    assert chosen_stems(make_workspace()) == [
        f"{role}: stem=auto gives resnet10t a 3x3 stem of stride 2 without max-pooling (small) "
        "at 16 pixels"
        for role in ("teacher", "student")
    ]


def test_what_is_chosen_by_the_user_is_not_said(make_workspace):
    override = "student.encoder={name: convnext_atto, stem: auto, input_size: 32}"
    workspace = make_workspace("teacher.encoder.stem=small", override)
    assert chosen_stems(workspace) == [
        "student: stem=auto gives convnext_atto its own stem (native) at 32 pixels"
    ]


@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("name=nope", "{role}.encoder: timm has no model 'nope'"),
        ("args.in_chans=1", "{role}.encoder.args.in_chans=1: the images have 3 channels"),
        ("args.layers=[1,1,1,1]", None),
        ("args.layers=[1,1,1,0]", None),
        ("args.channels=[8,16,16,24]", "{role}.encoder: 'resnet10t' returns embeddings of"),
    ],
)  # fmt: skip
def test_a_network_is_told_with_the_key_that_names_it(make_workspace, role, override, message):
    workspace = make_workspace(f"{role}.encoder.{override}")
    if message is None:
        check_networks(workspace)
        return
    with pytest.raises(UserError) as caught:
        check_networks(workspace)
    assert str(caught.value).startswith(message.format(role=role))


def test_one_of_several_teachers_is_told_by_its_name(make_workspace):
    teachers = "teachers={a: {encoder: {name: resnet10t}}, b: {encoder: {name: nope}}}"
    with pytest.raises(UserError, match=r"^teachers\.b\.encoder: timm has no model 'nope'"):
        check_networks(make_workspace(teachers, teacher=False))


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_network_whose_activations_cannot_be_recomputed_is_told(make_workspace, role):
    override = f"{role}.encoder={{name: vgg11, input_size: 32}}"
    check_networks(make_workspace(override))
    workspace = make_workspace(override, "device.checkpoint_activations=true")
    with pytest.raises(UserError) as caught:
        check_networks(workspace)
    message = f"{role}.encoder: device.checkpoint_activations: 'vgg11' has no blocks to recompute"
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("step", ["zeros", "search", "lowrank"])
@pytest.mark.parametrize("key", ["compress", "plans.a"])
def test_a_step_without_a_target_is_told_with_its_key(make_workspace, key, step):
    workspace = make_workspace(f"{key}=[refit, {step}]")
    with pytest.raises(UserError, match=rf"^{key}\.1: {step}: set exactly one of"):
        run.dry_run(workspace.experiment, workspace.root)
