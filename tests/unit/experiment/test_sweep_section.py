"""The section ``sweep``: what may be written in it, and the values it stands for."""

import pickle

import pytest

from ssdistill.chain.stages import Identity
from ssdistill.chain.sweep_points import listed_points, validated_points
from ssdistill.errors import UserError
from ssdistill.experiment.reading import load_experiment, read_config
from ssdistill.experiment.sweep_values import combinations, drawn

TINY = """
schema: 1
name: tiny
data: digits
student: {}
pretrain: {kind: simclr, steps: 3}
distill: {steps: 2, losses: {feature: {kind: simreg}, contrast: {kind: infonce}}}
"""
SWEEP = """
sweep:
  search: grid
  maximize: agree/cka
  parameters:
    distill.optim.lr: [0.001, 0.01]
    distill.losses.contrast.temperature: {low: 0.1, high: 0.3, step: 0.1}
"""
RANDOM = ["sweep.search=random", "sweep.points=5"]
LR = "sweep.parameters.distill.optim.lr"


@pytest.fixture
def write(tmp_path):
    """``write(*overrides)``: what the tiny sweep says with these."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY + SWEEP)
    return lambda *overrides: read_config(path, list(overrides))


def points(written):
    settings = written.experiment().sweep
    listed = listed_points(settings)
    validated_points(written, settings, listed)
    return listed


def test_a_grid_is_every_combination_and_the_last_parameter_changes_fastest(write):
    written = write()
    temperature = "distill.losses.contrast.temperature"
    assert points(written) == [
        {"distill.optim.lr": lr, temperature: t} for lr in (0.001, 0.01) for t in (0.1, 0.2, 0.3)
    ]
    point = written.at(points(written)[4])
    assert point.distill.optim.lr == 0.01 and point.distill.losses["contrast"].temperature == 0.2
    assert point.sweep is None


def test_a_sweep_is_no_part_of_its_experiment(write):
    with_sweep, without = write().experiment(), write("sweep=null").experiment()
    assert with_sweep.sweep is not None and without.sweep is None
    assert with_sweep.model_dump() == without.model_dump()
    assert Identity.of(with_sweep) == Identity.of(with_sweep.as_point()) == Identity.of(without)


def test_the_trial_of_a_point_goes_with_it_to_another_process(write):
    experiment = write().experiment()
    point = experiment.as_point("the trial")
    assert pickle.loads(pickle.dumps(point)).watched == "the trial"
    assert experiment.watched is None and point.model_dump() == experiment.model_dump()


def test_random_points_follow_from_the_seed_and_not_from_their_number(write):
    ranges = [f"{LR}={{low: 1e-4, high: 1, log: true}}", "sweep.parameters.distill.steps.low=2"]
    ranges += ["sweep.parameters.distill.steps.high=9", "sweep.parameters.distill.steps.int=true"]
    five = points(write(*RANDOM, *ranges))
    assert points(write(*RANDOM, *ranges, "sweep.points=7"))[:5] == five
    assert points(write(*RANDOM, *ranges, "sweep.seed=1")) != five
    rates = [point["distill.optim.lr"] for point in five]
    assert len(set(rates)) == 5 and all(1e-4 <= rate <= 1 for rate in rates)
    # Another parameter leaves the values of this one.
    assert [p["distill.optim.lr"] for p in points(write(*RANDOM, ranges[0]))] == rates
    assert {type(p["distill.steps"]) for p in five} == {int}


@pytest.mark.parametrize(
    ("written", "allowed"),
    [
        ("{low: 0.3, high: 0.5}", lambda v: 0.3 <= v <= 0.5),
        ("{low: 0.1, high: 0.5, step: 0.2}", lambda v: v in (0.1, 0.3, 0.5)),
        ("{low: 1e-3, high: 10, log: true}", lambda v: 1e-3 <= v <= 10),
        ("[0.2, 0.7]", lambda v: v in (0.2, 0.7)),
    ],
)
def test_random_values_are_those_of_the_range(write, written, allowed):
    varied = write(*RANDOM, f"{LR}={written}").experiment().sweep.varied
    values = [drawn(varied, 0, n)["distill.optim.lr"] for n in range(300)]
    assert all(map(allowed, values)) and len(set(values)) > 1
    if "log" in written:
        assert 0.4 < sum(value < 0.1 for value in values) / 300 < 0.6


def test_random_integers_reach_both_ends(write):
    for log in ("false", "true"):
        written = f"sweep.parameters.distill.steps={{low: 1, high: 3, int: true, log: {log}}}"
        varied = write(*RANDOM, written).experiment().sweep.varied
        assert {drawn(varied, 0, n)["distill.steps"] for n in range(200)} == {1, 2, 3}


def test_values_may_be_mappings_and_null(write):
    written = write("sweep.parameters={distill.mix: [null, {kind: mixup}], seeds: 1}")
    with pytest.raises(UserError, match="seeds: expected a list of values"):
        written.experiment()
    written = write("sweep.parameters=null", "sweep.parameters={pretrain: [{kind: byol}, {}]}")
    kinds = [written.at(point).pretrain.kind for point in points(written)]
    assert kinds == ["byol", "simclr"]


def test_null_removes_a_parameter_of_an_extended_file(write, tmp_path):
    child = tmp_path / "child.yaml"
    child.write_text(
        "extends: tiny.yaml\nschema: 1\nname: child\n"
        "sweep: {parameters: {distill.optim.lr: null, distill.steps: [2, 3]}}"
    )
    keys = {"distill.steps", "distill.losses.contrast.temperature"}
    assert load_experiment(child)[0].sweep.varied.keys() == keys
    child.write_text(child.read_text().replace("null", "{low: 0.1, high: 0.2, step: 0.1}"))
    # A range replaces a list.
    assert load_experiment(child)[0].sweep.varied["distill.optim.lr"].grid() == (0.1, 0.2)


def test_keys_may_be_nested_and_number_items_of_lists(write):
    written = write(
        "compress=[{kind: prune, ratio: 0.5}]", "sweep.parameters.compress.0.ratio=[0.2, 0.4]"
    )
    ratios = {written.at(point).compress[0].ratio for point in points(written)}
    assert ratios == {0.2, 0.4} and len(points(written)) == 12


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sweep.search=gird"], "sweep.search: expected 'grid', 'random' or 'tpe'"),
        (["sweep.search=random"], "sweep.points: required with search=random"),
        (["sweep.points=4"], "sweep.points: a grid has as many as combinations; remove points"),
        (["sweep.points=0", "sweep.search=tpe"], "sweep.points: expected a number above 0"),
        (["sweep.paramters={}"], "sweep.paramters: no such setting (did you mean 'parameters'?)"),
        (["sweep.parameters=null"], "sweep.parameters: expected a mapping"),
        (["sweep.maximize=null"], "sweep: set exactly one of maximize and minimize (none is set)"),
        (["sweep.minimize=collapse/std"], " and minimize=collapse/std are set)"),
        (["sweep.maximize=agree/cak"], "'agree/cak' is unknown (did you mean 'agree/cka'?)"),
        (
            ["sweep.maximize=probe/linear/top1"],
            "sweep.maximize: 'probe/linear/top1' is measured with test labels, which may not",
        ),
        (
            ["sweep.maximize=null", "sweep.minimize=held_out"],
            "sweep.minimize: held_out is an accuracy; use maximize",
        ),
        (["sweep.stop_early={by: rankme}"], "sweep.stop_early: requires search=tpe"),
        (["sweep.storage=sqlite:///a"], "sweep.storage: requires search=tpe"),
        (["sweep.at_once=2"], "sweep.at_once: requires search=tpe"),
        (
            ["sweep.search=tpe", "sweep.points=7", "sweep.at_once=3"],
            "points: 7 is not divisible by at_once=3; use 6 or 9",
        ),
        ([f"{LR}={{low: 1, high: 2}}"], "parameters.distill.optim.lr: a grid requires a list"),
        ([f"{LR}=3"], "distill.optim.lr: expected a list of values, or {low: 1, high: 2} (got 3)"),
        ([f"{LR}=[]"], "distill.optim.lr: expected a list of values"),
        ([f"{LR}=[1, 2, 1]"], "distill.optim.lr: a value is listed twice"),
        ([f"{LR}={{low: 1}}"], "distill.optim.lr.high: required"),
        ([f"{LR}={{low: 2, high: 1}}"], "distill.optim.lr: low=2 must be below high=1"),
        ([f"{LR}={{low: 0, high: 1, log: true}}"], "lr: log requires low above 0 (got 0)"),
        ([f"{LR}={{low: 1, high: 2, log: 1}}"], "lr.log: expected true or false (got 1)"),
        ([f"{LR}={{low: 1, high: true}}"], "lr.high: expected a number (got True)"),
        ([f"{LR}={{low: 1, high: 2, stp: 1}}"], "lr.stp: no such setting of a range (did you me"),
        ([f"{LR}={{low: 1, high: 2, step: 0}}"], "lr: step=0 must be above 0 and at most high"),
        ([f"{LR}={{low: 1, high: 2, step: 1e-9}}"], "makes more than 10000 values; raise it"),
        (
            [f"{LR}={{low: 1, high: 9, step: 1, log: true}}"],
            "lr: log=true and step=1 are both set; remove",
        ),
        ([f"{LR}={{low: 0.5, high: 9, int: true}}"], "lr: int requires whole numbers for low"),
        (["sweep.parameters.name=[a, b]"], "name: is the same for all points; remove it"),
        (["sweep.parameters.distill=[{}]"], "distill.optim.lr: distill varies, too; remove one"),
        (["sweep.held_out.fraction=1"], "sweep.held_out.fraction: expected a number below 1"),
    ],
)
def test_what_a_sweep_cannot_be_is_said_in_one_line(write, overrides, message):
    with pytest.raises(UserError) as raised:
        write(*overrides).experiment()
    first, problem = str(raised.value).splitlines()
    assert first.endswith("tiny.yaml: 1 problem") and message in problem


@pytest.mark.parametrize("search", ["grid", "random", "tpe"])
@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        (
            "distill.optim.wait_decay=[0.1, 1]",
            "sweep.parameters.distill.optim.wait_decay: no such setting (did you mean 'weight_d",
        ),
        (
            "distil.steps=[1, 2]",
            "sweep.parameters.distil.steps: no such setting (did you mean 'distill'?)",
        ),
        ("distill.steps=[4, 0]", "sweep.parameters.distill.steps: expected a number above 0"),
        ("distill.epochs=[1, 2]", "set exactly one of steps and epochs (steps="),
    ],
)
def test_every_point_is_validated_before_anything_runs(write, search, parameter, message):
    overrides = [f"sweep.search={search}"] + ["sweep.points=20"] * (search != "grid")
    with pytest.raises(UserError) as raised:
        points(write(*overrides, f"sweep.parameters.{parameter}"))
    first, *problems = str(raised.value).splitlines()
    assert first.startswith(str(write().file)) and message in problems[0]


def test_a_grid_without_end_is_refused(write):
    tens = ", ".join(map(str, range(1, 102)))
    written = write(f"sweep.parameters={{distill.steps: [{tens}], pretrain.steps: [{tens}]}}")
    with pytest.raises(UserError, match="more than 10000 combinations; shorten the lists"):
        points(written)


def test_combinations_keep_the_order_of_the_parameters(write):
    keys = {tuple(point) for point in combinations(write().experiment().sweep.varied)}
    assert keys == {("distill.optim.lr", "distill.losses.contrast.temperature")}


def test_single_experiments_refuse_a_sweep(write, tmp_path):
    from ssdistill.chain.run import run

    with pytest.raises(UserError, match="sweep: this runs one experiment; use `ssdistill run`"):
        run(load_experiment(write().file)[0], tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
