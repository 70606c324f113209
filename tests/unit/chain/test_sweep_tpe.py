"""Points from Optuna: the same whether or not the search was interrupted, and early stopping."""

import ast
import sys
from pathlib import Path

import optuna
import pytest
import torch
from lightning_fabric import Fabric
from optuna.trial import TrialState

from ssdistill.chain import sweep_tpe
from ssdistill.chain.sweep_points import Outcome
from ssdistill.chain.sweep_tpe import TpeSearch, WatchedTrial, storage_of
from ssdistill.chain.sweep_watch import SweepWatch, measured_steps
from ssdistill.data.loader import Loader
from ssdistill.data.recipes import RECIPES
from ssdistill.errors import StoppedEarly, UserError
from ssdistill.experiment.sweep import StopEarlySettings, SweepSettings
from ssdistill.pretrain.simclr import SimCLR, SimCLRProjector
from ssdistill.record.run import Run, load_run
from ssdistill.record.tracker import Tracker, TrackingSettings
from ssdistill.train.checkpoint import load_checkpoint
from ssdistill.train.loop import CHECKPOINT, Training, fit
from ssdistill.train.optim import OptimSettings

PARAMETERS = {
    "rate": {"low": 1e-4, "high": 1.0, "log": True},
    "count": {"low": 1, "high": 9, "int": True},
    "step": {"low": 0.1, "high": 0.85, "step": 0.2},
    "kind": ["a", None, {"kind": "b"}],
}
POINTS = 14
"""More than the ten that are random."""


def settings(**changes):
    values = {"search": "tpe", "points": POINTS, "maximize": "agree/cka", "parameters": PARAMETERS}
    return SweepSettings.model_validate(values | changes)


@pytest.fixture
def search(tmp_path):
    """``search(name, **settings)``: a search whose database is kept in a folder."""

    def make(name="x", **changes):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        chosen = settings(**changes)
        return TpeSearch(chosen, storage_of(chosen, folder), "study", "distilled")

    return make


def finished(point):
    value = point.values["count"] - 10 * abs(point.values["rate"] - 0.01)
    return Outcome(point.number, point.values, "finished", value)


def run_all(search, count=1):
    values = []
    while points := search.ask(count):
        for point in points:
            values.append(point.values)
            search.tell(point, finished(point))
    return values


@pytest.fixture
def whole(search):
    return run_all(search("whole"))


def test_values_are_those_of_the_parameters(whole):
    assert len(whole) == POINTS
    for values in whole:
        assert 1e-4 <= values["rate"] <= 1 and values["count"] in range(1, 10)
        assert round(values["step"], 12) in (0.1, 0.3, 0.5, 0.7)
        assert values["kind"] in PARAMETERS["kind"]
    assert len({values["rate"] for values in whole}) == POINTS


def test_a_search_learns_from_what_it_is_told(whole):
    early, late = (sum(v["count"] for v in whole[part]) / 4 for part in (slice(4), slice(-4, None)))
    assert late > early


@pytest.mark.parametrize("killed_after", [0, 3, 11])
def test_an_interrupted_search_chooses_the_same_points(search, whole, killed_after):
    first = search()
    values = []
    for _ in range(killed_after):
        (point,) = first.ask(1)
        values.append(point.values)
        first.tell(point, finished(point))
    (left_running,) = first.ask(1)
    again = search()
    (taken_up,) = again.ask(1)
    assert (taken_up.number, taken_up.values) == (left_running.number, left_running.values)
    again.tell(taken_up, finished(taken_up))
    assert [*values, taken_up.values, *run_all(again)] == whole
    assert search().ask(1) == []


def test_another_seed_and_other_values_lead_elsewhere(search, whole):
    assert run_all(search("seed", seed=1)) != whole
    worse = search("worse")
    values = []
    while points := worse.ask(1):
        values += [points[0].values]
        worse.tell(points[0], Outcome(points[0].number, points[0].values, "failed", reason="no"))
    assert values[0] == whole[0] and values[-1] != whole[-1]


@pytest.mark.parametrize("ended", [0, 1, 3])
def test_an_interrupted_group_is_finished_before_the_next_is_chosen(search, whole, ended):
    groups = run_all(search("groups", at_once=4, points=12), 4)
    groups += run_all(search("groups", at_once=4, points=16), 4)
    assert len(groups) == 16 and groups[:10] == whole[:10] and groups[11:] != whole[11:]
    first = search(at_once=4, points=16)
    points = first.ask(2) + first.ask(4)
    assert [point.number for point in points] == [0, 1, 2, 3] and first.ask(4) == []
    for point in points[:ended]:
        first.tell(point, finished(point))
    again = search(at_once=4, points=16)
    left = again.ask(4)
    assert [point.number for point in left] == [0, 1, 2, 3][ended:]
    for point in left:
        again.tell(point, finished(point))
    assert [p.values for p in points] + run_all(again, 4) == groups


def test_the_database_holds_what_became_of_every_point(search):
    found = search(at_once=3, points=15)
    points = found.ask(3)
    outcomes = [
        finished(points[0]),
        Outcome(1, points[1].values, "stopped", reason="agreement 0.1 after 20% of the training"),
        Outcome(2, points[2].values, "failed", reason="loss/total is nan"),
    ]
    for point, outcome in zip(points, outcomes, strict=True):
        found.tell(point, outcome)
    assert search().ended() == outcomes
    states = [trial.state for trial in found.study.trials]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
    assert found.study.best_value == outcomes[0].value


def test_a_search_that_minimizes_says_so(search):
    found = search(maximize=None, minimize="compress/bytes")
    assert found.study.direction == optuna.study.StudyDirection.MINIMIZE


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"requires Optuna: pip install 'ssdistill\[sweep\]'"):
        sweep_tpe.require_optuna()


def test_other_searches_do_without_optuna():
    for file in Path(sweep_tpe.__file__).parent.glob("*.py"):
        top = [node for node in ast.parse(file.read_text()).body if "Import" in type(node).__name__]
        lines = map(ast.unparse, top)
        assert not [x for x in lines if x.startswith(("import optuna", "from optuna"))], file


def test_a_storage_that_cannot_be_opened_is_one_line_without_its_password():
    with pytest.raises(UserError) as raised:
        sweep_tpe.open_study("mysql+nothing://me:secret@host/x", "study", "maximize")
    message = str(raised.value)
    assert message.startswith("sweep.storage mysql+nothing://…@host/x: cannot be opened (")
    assert "secret" not in message.partition("(")[0] and "\n" not in message


def test_a_damaged_database_is_one_line(search, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "optuna.db").write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 20)
    with pytest.raises(
        UserError, match=r"^sweep\.storage sqlite:///.*optuna\.db: cannot be opened"
    ):
        search()


def test_a_database_that_fails_later_is_one_line(search, monkeypatch):
    found = search()
    error = optuna.exceptions.StorageInternalError("disk I/O error")
    monkeypatch.setattr(found.study, "get_trials", lambda **_: raised(error))
    with pytest.raises(UserError, match=r"optuna\.db: failed \(disk I/O error\); run the same"):
        found.ask(1)


def raised(error):
    raise error


STOP = StopEarlySettings(by="rankme", every=0.25, after=0.5, points=2)


@pytest.fixture
def watched(search):
    """``watched(direction)``: a trial beside two that reached 10 everywhere."""

    def make(**changes):
        found = search(stop_early=STOP, **changes)
        for _ in range(2):
            (point,) = found.ask(1)
            trial = WatchedTrial(point.watched)
            for position in (1, 2, 3, 1001):
                trial.report(10.0, position)
            found.tell(point, finished(point))
        (point,) = found.ask(1)
        return found, point

    return make


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_trial_below_the_median_stops_and_a_better_one_does_not(watched, direction):
    changes = {"maximize": None, "minimize": "collapse/uniformity"}
    _, point = watched(**(changes if direction == "minimize" else {}))
    trial = WatchedTrial(point.watched)
    trial.report(11.0, 1)
    assert not trial.should_stop()
    # Its best value counts, not its last.
    trial.report(9.0, 2)
    assert not trial.should_stop()
    trial = WatchedTrial(point.watched)
    trial.report(5.0, 1001)
    assert not trial.should_stop()


def test_a_trial_without_enough_others_goes_on(search):
    found = search(stop_early=STOP)
    (point,) = found.ask(1)
    trial = WatchedTrial(point.watched)
    trial.report(-1.0, 1)
    assert not trial.should_stop()


def test_a_value_that_an_interrupted_run_has_reported_stays(watched, recwarn):
    found, point = watched()
    WatchedTrial(point.watched).report(3.0, 2)
    trial = WatchedTrial(point.watched)
    trial.report(99.0, 2)
    trial.report(float("nan"), 3)
    assert found.study.trials[-1].intermediate_values == {2: 3.0}
    assert not [w for w in recwarn if "already reported" in str(w.message)]


def test_measurements_are_at_fractions_of_the_training():
    assert measured_steps(0.25, 8) == {2: 1, 4: 2, 6: 3}
    assert measured_steps(0.1, 5) == {1: 1, 2: 3, 3: 5, 4: 7}
    assert measured_steps(0.5, 1) == {}


class Measured:
    """A criterion with fixed values, which notes the steps it was measured at."""

    def __init__(self, *values):
        self.values = list(values)

    def measure(self, task):
        return self.values.pop(0)


@pytest.fixture
def train(make_encoder, make_store, tmp_path):
    """``train(observers)``: eight steps, resumed if they were interrupted; returns the weights."""

    def run(*observers, folder="run"):
        torch.manual_seed(0)
        task = SimCLR(make_encoder(), projector=SimCLRProjector(output_dim=8))
        training = Training(
            task=task,
            loader=Loader(make_store(), 8, seed=1, num_steps=8),
            recipes=(RECIPES["weak"],) * 2,
            optim=OptimSettings(kind="sgd", lr=0.01),
            seed=2,
            checkpoint_seconds=1e9,
            progress=False,
        )
        record = Run(tmp_path / folder, stage="pretrain", digest="d" * 64, seed=0)
        with Tracker(record, TrackingSettings(wandb="disabled")) as tracker:
            tracker.finish(
                fit(training, Fabric(accelerator="cpu", devices=1), tracker, observers=observers)
            )
        return task.state_dict()

    return run


def test_a_point_that_does_worse_is_stopped_with_a_checkpoint(watched, train, tmp_path):
    found, point = watched()
    # Before half of the training nothing is stopped.
    watch = SweepWatch(point.watched, Measured(4.0, 5.0), 8)
    with pytest.raises(StoppedEarly, match=r"^rankme 5 after 50% of the training$"):
        train(watch)
    record = load_run(tmp_path / "run")
    assert (record.status, record.reason) == ("interrupted", "StoppedEarly")
    checkpoint = load_checkpoint(tmp_path / "run" / CHECKPOINT)
    assert checkpoint["step"] == 4
    assert found.study.trials[-1].intermediate_values == {1: 4.0, 2: 5.0}
    # Killed before the sweep has noted it: it stops again at once, and measures nothing.
    with pytest.raises(StoppedEarly, match="rankme 5 after 50% of the training"):
        train(SweepWatch(point.watched, Measured(), 8))
    # Run by itself, the training goes on from there.
    whole = train(folder="whole")
    assert all(torch.equal(value, whole[name]) for name, value in train().items())


def test_a_point_that_does_as_well_trains_as_without_the_watch(watched, train):
    _, point = watched()
    weights = train(SweepWatch(point.watched, Measured(11.0, 10.0, 12.0), 8))
    alone = train(folder="alone")
    assert all(torch.equal(value, alone[name]) for name, value in weights.items())


def test_seeds_of_a_point_are_compared_seed_by_seed(watched, train):
    found, point = watched()
    train(SweepWatch(point.watched, Measured(11.0, 11.0, 11.0), 8, turn=1))
    assert found.study.trials[-1].intermediate_values == {1001: 11.0, 1002: 11.0, 1003: 11.0}
