import pytest

from ssdistill.artifacts.artifact import save_encoder
from ssdistill.chain.plan import evaluations_of, latency_stage, models_of
from ssdistill.errors import UserError

BY_OTHERS = ("control=null", "pretrain=null")


@pytest.fixture
def finished(tmp_path, make_encoder):
    """``finished(seed)``: the folder of an encoder that was saved before."""

    def save(seed=0):
        folder = tmp_path / f"encoder{seed}"
        save_encoder(make_encoder(seed), folder)
        return folder

    return save


def parents(stage):
    return {part: parent.role for part, parent in stage.parents.items()}


def test_a_teacher_that_exists_is_loaded_and_not_pretrained(models, finished):
    stages = models(f"teacher={{kind: run, path: {finished()}}}", *BY_OTHERS)
    assert stages["teacher"].kind == "load"
    assert parents(stages["distilled"]) == {"teacher": "teacher"}
    assert "control" not in stages


def test_a_control_is_trained_beside_a_loaded_teacher_where_a_method_is_given(models, finished):
    stages = models(
        f"teacher={{kind: run, path: {finished()}}}", "control.budgets=[steps,time,total]"
    )
    assert stages["control"].kind == "pretrain"
    # Nobody here knows what the teacher has cost.
    assert parents(stages["control_total"]) == {"distilled": "distilled"}


def test_other_weights_are_another_teacher_and_seeds_share_it(models, finished):
    folders = [finished(seed) for seed in (0, 1)]
    given = [f"teacher={{kind: run, path: {folder}}}" for folder in folders]
    first, second = (models(teacher, *BY_OTHERS)["teacher"] for teacher in given)
    assert first.digest != second.digest
    again = models(given[0], *BY_OTHERS, seed=1)["teacher"]
    assert (again.digest, again.seed) == (first.digest, first.seed)


def test_only_what_is_pretrained_here_is_called_after_its_method(models, finished):
    alone = ("distill=null", "compress=[]")
    loaded = models(f"teacher={{kind: run, path: {finished()}}}", *alone)
    assert list(loaded) == ["untrained", "teacher"]
    assert list(models("teacher.pretrain=byol", *alone)) == ["untrained", "byol"]


def test_a_missing_teacher_is_named_before_anything_is_trained(models, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        models(f"teacher={{kind: run, path: {tmp_path / 'nowhere'}}}", *BY_OTHERS)


def test_several_teachers_are_rows_and_all_teach(make_workspace, finished):
    workspace = make_workspace(
        f"teachers.a={{kind: run, path: {finished(0)}}}",
        f"teachers.b={{kind: run, path: {finished(1)}}}",
        "pretrain=null",
        teacher=False,
    )
    stages = models_of(workspace, 0)
    both = {"teacher_a": "teacher_a", "teacher_b": "teacher_b"}
    assert parents(stages["distilled"]) == both
    assert parents(stages["recovered"]).items() >= both.items()
    assert parents(evaluations_of(workspace, 0)["int8"]) == {"model": "int8", **both}


COMPARED = ("distill=null", "compress=[]", "student=null")


def test_ways_to_pretrain_are_rows_of_one_encoder(make_workspace):
    workspace = make_workspace(
        *COMPARED,
        "compare.byol={pretrain: byol}",
        "compare.longer={pretrain: {temperature: 0.5, steps: 20}, budget: time}",
    )
    stages = models_of(workspace, 0)
    assert list(stages) == ["untrained", "simclr", "byol", "longer"]
    assert len({str(stage.config["encoder"]) for stage in stages.values()}) == 1
    methods = {role: stages[role].config["method"] for role in ("simclr", "byol", "longer")}
    assert [m["steps"] for m in methods.values()] == [9, 9, 20]
    assert [m["kind"] for m in methods.values()] == ["simclr", "byol", "simclr"]
    assert methods["longer"]["temperature"] == 0.5
    assert parents(stages["longer"]) == {"teacher": "simclr"}
    assert parents(stages["byol"]) == {}
    # They are not meant to agree, and are equally fast.
    assert all(list(e.parents) == ["model"] for e in evaluations_of(workspace, 0).values())
    assert latency_stage(workspace, 0) is None


@pytest.mark.parametrize(
    "overrides, reason",
    [
        (("compare.simclr={pretrain: byol}",), "already has this name"),
        (("pretrain=null",), "pretrain: required"),
        (("student=null", "distill={steps: 3, losses: {a: {kind: simreg}}}"), "student: required"),
        (("compare.other={pretrain: {kind: bioyl}}",), "compare.other.pretrain"),
        (
            ("teachers.a={kind: pretrain}", "teacher.kind=pretrain"),
            "teacher and teachers are both set",
        ),
        (("teacher.pretrain={kind: byol, hiden: 3}",), r"teacher\.pretrain\.hiden: no such"),
        (("teacher.kind=chekpoint",), "teacher.kind: 'chekpoint' is unknown"),
        (
            (
                "teacher={kind: run, path: x}",
                "pretrain=null",
                "student={}",
                "control={}",
                "distill={steps: 3, losses: {a: {kind: simreg}}}",
            ),
            "control: requires a pretrain",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(models, overrides, reason):
    with pytest.raises(UserError, match=reason):
        models(*COMPARED, *overrides)


def test_views_fit_the_method(models):
    small = "{recipe: multicrop_small, size: 8, count: 2}"
    with pytest.raises(UserError, match="simclr takes 2 views, got 4"):
        models(f"pretrain.views=[weak, weak, {small}]")
    stages = models("pretrain.kind=swav", f"pretrain.views=[weak, weak, {small}]")
    assert [view["size"] for view in stages["teacher"].config["views"]] == [None, None, 8, 8]
    with pytest.raises(UserError, match="full size"):
        models("pretrain.kind=swav", f"pretrain.views=[weak, {small}]")
