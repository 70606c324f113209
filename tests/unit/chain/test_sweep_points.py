"""Sweeps of a tiny experiment: shared stages, what chooses, failures, resuming."""

import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from ssdistill.chain import arithmetic
from ssdistill.chain import run as run_module
from ssdistill.chain import sweep as sweep_module
from ssdistill.chain.run import Serial
from ssdistill.chain.side_by_side import finish_side_by_side
from ssdistill.chain.sweep import open_sweep, run_point, run_sweep
from ssdistill.chain.sweep_plan import plan_points
from ssdistill.chain.sweep_points import Outcome, Point, read_outcomes
from ssdistill.chain.sweep_report import make_sweep_report, plan_table
from ssdistill.commands.main import main
from ssdistill.errors import StoppedEarly, UserError
from ssdistill.evaluate.held_out import HeldOutProbe
from ssdistill.experiment.reading import read_config
from ssdistill.experiment.sweep import LABEL_FREE

CONFIG = """
schema: 1
name: tiny
profile: smoke
data: {kind: npz, path: DATA}
teacher: {encoder: &net {name: resnet10t, stem: small, stem_stride: 2,
  args: {layers: [1, 1, 0, 0], channels: [16, 16, 16, 16], stem_type: deep, stem_width: 8}}}
student: {encoder: *net}
pretrain: {kind: simclr, steps: 2, batch_size: 16}
control: null
distill: {steps: 4, batch_size: 16, losses: {feature: {kind: simreg}}}
evaluate: {knn: null, low_shot: null}
device: {precision: fp32, memory_format: contiguous, accelerator: cpu}
tracking: {wandb: disabled}
sweep:
  search: grid
  maximize: agree/cka
  parameters: {distill.optim.lr: [1.0e-4, 5.0e-3]}
"""
TPE = ["sweep.search=tpe", "sweep.points=2"]
TPE += ["sweep.parameters.distill.optim.lr={low: 1e-4, high: 1e-1, log: true}"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The tiny sweep, on images whose class shows in their color."""
    folder = tmp_path_factory.mktemp("sweep")
    labels = np.arange(90) % 3
    images = np.random.default_rng(0).integers(0, 160, (90, 16, 16, 3))
    images[..., 0] += 40 * labels[:, None, None]
    images = images.astype(np.uint8)
    splits = {"train": slice(60), "test": slice(60, None)}
    arrays = {f"{name}_images": images[rows] for name, rows in splits.items()}
    arrays |= {f"{name}_labels": labels[rows] for name, rows in splits.items()}
    np.savez(folder / "data.npz", **arrays)
    path = folder / "tiny.yaml"
    path.write_text(CONFIG.replace("DATA", str(folder / "data.npz")))
    return path


@pytest.fixture(scope="module", autouse=True)
def untimed():
    """What is timed is a constant."""

    def latency(stage, workspace, tracker):
        return {f"compress/latency_ms/{role}": 1.0 for role in stage.parents}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arithmetic, "ROUNDS", 2)
        patch.setitem(run_module.BODIES, "latency", latency)
        yield


@pytest.fixture(scope="module")
def grid(config, tmp_path_factory):
    """A finished grid of two points, and what its command said."""
    root = tmp_path_factory.mktemp("grid") / "runs"
    sweep = open_sweep(read_config(config), root)
    planned = plan_points(sweep)
    outcomes = run_sweep(sweep, lambda outcomes: make_sweep_report(sweep, outcomes))
    report = make_sweep_report(sweep, outcomes)
    return SimpleNamespace(root=root, sweep=sweep, planned=planned, report=report)


@pytest.fixture
def tiny_sweep(config, grid):
    """``tiny_sweep(*overrides)``: a sweep whose stages may be finished already."""
    return lambda *overrides: open_sweep(read_config(config, list(overrides)), grid.root)


def no_run(experiment, root):
    raise AssertionError("nothing is left to run")


def failing(error):
    def run(experiment, root):
        raise error

    return run


def stages_of(root, kind):
    return sorted((root / "stages").glob(f"{kind}-*/s*/run.json"))


def metrics_of(root, outcome, model="distilled"):
    lines = (root / outcome.report / "records.jsonl").read_text().splitlines()
    (record,) = (r for r in map(json.loads, lines) if r["model"] == model)
    return record["metrics"]


def test_the_points_of_a_grid_share_the_teacher(grid):
    assert len(stages_of(grid.root, "pretrain")) == 1
    assert len(stages_of(grid.root, "distill")) == 2
    # initialize, pretrain, distill, evaluations of the three, latency
    assert [(p.stages, p.shared, p.missing) for p in grid.planned] == [(7, 0, 7), (7, 4, 3)]


def test_the_best_point_is_the_one_whose_report_says_so(grid):
    first, second = grid.report.outcomes
    for outcome in (first, second):
        assert outcome.value == metrics_of(grid.root, outcome)["agree/cka"]
        assert outcome.by_seed == {"0": outcome.value} and outcome.status == "finished"
        assert (grid.root / outcome.model / "model.json").exists()
    assert first.value > second.value and grid.report.best == first
    assert {o.values["distill.optim.lr"] for o in (first, second)} == {1e-4, 5e-3}
    assert grid.report.folder.parent == grid.root / "sweeps"


def test_every_metric_that_may_choose_is_measured(grid):
    metrics = metrics_of(grid.root, grid.report.best)
    timed = {"compress/latency_batch64_ms", "compress/speedup", "compress/speedup_batch64"}
    # The constant that stands for the timing has no more names.
    assert set(LABEL_FREE) - metrics.keys() <= timed | {"compress/smaller"}


def test_the_pages_say_what_chose_and_name_every_report(grid):
    folder, best = grid.report.folder, grid.report.best
    said = "Chosen by the largest agree/cka of 'distilled' (seed 0), for which no label is read."
    for name in ("sweep.md", "sweep.html"):
        text = (folder / name).read_text().replace("&#39;", "'")
        assert said in text and "2 points: 2 finished" in text
        assert all(outcome.report in text for outcome in grid.report.outcomes)
    assert read_outcomes(folder)[best.point] == best
    assert "top1" not in (folder / "sweep.jsonl").read_text()


def test_the_command_runs_the_chosen_point(grid, config):
    words = grid.report.command.split()
    lr = grid.report.best.values["distill.optim.lr"]
    expected = ["ssdistill", "run", str(config), f"distill.optim.lr={lr}", "sweep=null"]
    assert words == [*expected, "--runs", str(grid.root)]


def test_a_finished_sweep_runs_nothing_again(grid, config, monkeypatch, capsys):
    monkeypatch.setattr(sweep_module, "run_experiment", no_run)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["run", str(config), "--runs", str(grid.root)]) == 0
    out = capsys.readouterr().out
    best = grid.report.best
    rows = [
        line.split() for line in out.splitlines() if "finished" in line and "points" not in line
    ]
    shown = [str(best.point + 1), f"{best.values['distill.optim.lr']:g}", f"{best.value:.4f}"]
    assert rows[0][:3] == shown and len(rows) == 2
    assert str(grid.root / best.report / "report.html") in out
    assert max(map(len, out.split("\nsweep:")[0].splitlines())) <= 80


def test_a_dry_run_shows_points_and_shared_stages_and_writes_nothing(
    grid, config, tmp_path, capsys
):
    assert main(["run", str(config), "--dry-run", "--runs", str(tmp_path / "runs")]) == 0
    out = capsys.readouterr().out
    assert "2 points: 10 different stages instead of 14." in out
    assert not (tmp_path / "runs").exists()
    assert main(["run", str(config), *TPE, "--dry-run", "--runs", str(tmp_path / "runs")]) == 0
    assert "2 points, chosen one after the other during the run." in capsys.readouterr().out
    words = [*TPE, "sweep.points=6", "sweep.at_once=2", "--dry-run"]
    assert main(["run", str(config), *words, "--runs", str(tmp_path / "runs")]) == 0
    assert "6 points, chosen in groups of 2 during the run." in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["reproduce"], "sweep: this runs one experiment; use `ssdistill run`, or set sweep=null"),
        (["run", "--publish", "x"], "--publish: a sweep has no table of models"),
        (["run", "sweep.model=distiled"], "'distiled' is unknown (did you mean 'distilled'?)"),
        (["run", "device.devices=2"], "sweep: its trainings run in one process each"),
        (
            ["run", "sweep.parameters.pretrain.steps=[1, 2]"],
            "sweep.maximize=agree/cka: pretrain.steps changes the teacher, and agreement with",
        ),
        (
            ["run", "sweep.maximize=held_out", "evaluate=null"],
            "sweep: evaluate=null forbids reading labels",
        ),
        (
            ["run", *TPE, "sweep.model=untrained", "sweep.stop_early={by: rankme}"],
            "sweep.stop_early: 'untrained' is not trained",
        ),
        (
            ["run", *TPE, "sweep.model=teacher", "sweep.stop_early={by: agreement}"],
            "sweep.stop_early.by=agreement: 'teacher' learns from no teacher",
        ),
        (["run", *TPE, "sweep.storage=sqlit:///x"], "sweep.storage sqlit:///x: cannot be opened"),
        (
            ["run", "sweep.parameters.distill.batch_size=[16, 61]"],
            "sweep point distill.optim.lr=0.0001, distill.batch_size=61: ",
        ),
    ],
)
def test_what_cannot_run_is_refused_before_anything_runs(
    command, message, config, grid, monkeypatch, capsys
):
    monkeypatch.setattr(sweep_module, "run_experiment", no_run)
    name, *words = command
    claims = [
        "paper={claims: [{metric: probe/linear/top1, model: distilled, better_than: teacher}]}"
    ]
    words += claims if name == "reproduce" else []
    assert main([name, str(config), *words, "--runs", str(grid.root)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_of_many_points_the_first_are_planned(tiny_sweep, monkeypatch):
    monkeypatch.setattr("ssdistill.chain.sweep_plan.MOST_PLANNED", 2)
    sweep = tiny_sweep("sweep.parameters.distill.optim.lr=[1e-4, 5e-3, 0.1]")
    caption = plan_table(sweep, plan_points(sweep)).caption
    assert caption.startswith("The first 2 of 3 points: 10 different stages instead of 14.")


def test_a_failing_point_is_recorded_and_the_sweep_goes_on(tiny_sweep, monkeypatch):
    distill = run_module.BODIES["distill"]

    def diverging(stage, workspace, tracker):
        if stage.config["training"]["optim"]["lr"] == 9:
            raise UserError("loss/feature is nan at step 3: lower optim.lr")
        return distill(stage, workspace, tracker)

    monkeypatch.setitem(run_module.BODIES, "distill", diverging)
    sweep = tiny_sweep("sweep.parameters.distill.optim.lr=[1e-4, 9, 5e-3]")
    outcomes = run_sweep(sweep, lambda outcomes: None)
    assert [outcomes[n].status for n in range(3)] == ["finished", "failed", "finished"]
    assert outcomes[1].reason == "loss/feature is nan at step 3: lower optim.lr"
    report = make_sweep_report(sweep, outcomes)
    assert report.table.rows[-1][0] == "2" and "failed: loss/" in report.table.rows[-1][-1]
    assert "3 points: 2 finished, 1 failed." in report.table.caption
    monkeypatch.setattr(sweep_module, "run_experiment", no_run)
    assert run_sweep(sweep, lambda outcomes: None) == outcomes


def test_points_whose_stages_were_done_together_are_run_and_fail_by_themselves(
    tiny_sweep, monkeypatch
):
    tried = []

    def diverging(stage, workspace, tracker):
        tried.append(stage.digest)
        if stage.config["training"]["optim"]["lr"] == 9:
            raise UserError("loss/feature is nan at step 3: lower optim.lr")
        return distill(stage, workspace, tracker)

    distill = run_module.BODIES["distill"]
    monkeypatch.setitem(run_module.BODIES, "distill", diverging)
    sweep = tiny_sweep("sweep.parameters.distill.optim.lr=[2e-4, 9]")
    together = partial(finish_side_by_side, executor=Serial())
    outcomes = run_sweep(sweep, lambda outcomes: None, together=together)
    assert [outcomes[n].status for n in range(2)] == ["finished", "failed"]
    assert outcomes[1].reason == "loss/feature is nan at step 3: lower optim.lr"
    first, second = dict.fromkeys(tried)
    assert tried == [first, second, second]


def test_it_is_an_error_if_every_point_fails(monkeypatch, config, grid, capsys):
    words = ["sweep.parameters.distill.optim.lr=[1e-4, 5e-3]", "sweep.maximize=collapse/std"]
    monkeypatch.setattr(sweep_module, "run_point", lambda s, p, _: Outcome(p.number, {}, "failed"))
    assert main(["run", str(config), *words, "--runs", str(grid.root)]) == 2
    assert "error: sweep: none of 2 points finished" in capsys.readouterr().err


def test_what_ends_a_point_is_told_apart(tiny_sweep):
    sweep, point = tiny_sweep(), Point(0, {"distill.optim.lr": 0.1})
    stopped = run_point(sweep, point, failing(StoppedEarly("rankme 3 after 20% of the training")))
    assert (stopped.status, stopped.reason) == ("stopped", "rankme 3 after 20% of the training")
    failed = run_point(sweep, point, failing(MemoryError("of the device")))
    assert (failed.status, failed.reason) == ("failed", "not enough memory (of the device)")
    with pytest.raises(KeyboardInterrupt):
        run_point(sweep, point, failing(KeyboardInterrupt()))
    with pytest.raises(ZeroDivisionError):
        run_point(sweep, point, failing(ZeroDivisionError()))


def test_a_model_or_metric_that_a_point_lacks_fails_the_point(tiny_sweep):
    sweep = tiny_sweep("sweep.maximize=compress/smaller")
    outcome = run_point(sweep, Point(0, {"distill.optim.lr": 1e-4}))
    assert outcome.status == "failed"
    assert outcome.reason.startswith("sweep: 'compress/smaller' of 'distilled' was not measured; ")


def test_held_out_labels_choose_and_test_labels_have_no_say(tiny_sweep, monkeypatch):
    sweep = tiny_sweep("sweep.maximize=held_out", "sweep.held_out.fraction=0.3", "seeds=[0, 1]")
    read = []
    monkeypatch.setattr(
        HeldOutProbe,
        "of",
        lambda train, *split, of=HeldOutProbe.of: read.append(train) or of(train, *split),
    )
    outcome = run_point(sweep, Point(1, {"distill.optim.lr": 5e-3}))
    assert outcome.by_seed.keys() == {"0", "1"}
    assert outcome.value == pytest.approx(np.mean(list(outcome.by_seed.values())))
    # The color tells the classes apart.
    assert 60 < outcome.value <= 100
    assert {images.split for images in read} == {"train"}
    report = make_sweep_report(sweep, {1: outcome})
    assert "on 18 held-out training labels, of a linear probe of 42 others" in report.table.caption
    assert report.table.header == ("point", "lr", "held_out (%)", "std", "status")


def test_damaged_records_are_named(tiny_sweep):
    sweep = tiny_sweep("sweep.maximize=collapse/lidar")
    sweep.folder.mkdir(parents=True)
    for text in (
        "{",
        '{"point": 1}',
        '{"point": 0, "values": {}, "status": "finished"}',
        "[]",
        '{"point": 0, "values": {}, "status": "odd"}',
    ):
        (sweep.folder / "sweep.jsonl").write_text(text + "\n")
        with pytest.raises(UserError, match=r"sweep\.jsonl: damaged .* remove it and run the same"):
            run_sweep(sweep, lambda outcomes: None)


class Killed(BaseException):
    """As if the process had been killed."""


def test_a_killed_search_goes_on_as_if_it_had_not_been(config, grid, tmp_path, monkeypatch):
    whole = open_sweep(read_config(config, TPE), grid.root)
    expected = run_sweep(whole, lambda outcomes: None)
    sweep = open_sweep(read_config(config, TPE), tmp_path / "runs")
    assert sweep.digest == whole.digest
    distill = run_module.BODIES["distill"]
    trained = []

    def killed(stage, workspace, tracker):
        trained.append(stage.config["training"]["optim"]["lr"])
        if len(trained) == 2:
            raise Killed
        return distill(stage, workspace, tracker)

    with monkeypatch.context() as patch:
        patch.setitem(run_module.BODIES, "distill", killed)
        with pytest.raises(Killed):
            run_sweep(sweep, lambda outcomes: None)
        assert read_outcomes(sweep.folder).keys() == {0}
        found = run_sweep(sweep, lambda outcomes: None)
    # The point that was killed is taken up with the same value, and no other is repeated.
    assert trained[1] == trained[2] and len(trained) == len(set(trained)) + 1 == 3
    assert found == expected and len(expected) == 2
    import optuna

    (study,) = optuna.get_all_study_summaries(f"sqlite:///{sweep.folder / 'optuna.db'}")
    assert study.n_trials == 2
    # A third point goes on from two, whose record is in the database, too.
    (sweep.folder / "sweep.jsonl").unlink()
    more = open_sweep(read_config(config, [*TPE, "sweep.points=3"]), tmp_path / "runs")
    outcomes = run_sweep(more, lambda outcomes: None)
    assert {n: outcomes[n] for n in range(2)} == expected and len(outcomes) == 3
    assert read_outcomes(more.folder) == outcomes
