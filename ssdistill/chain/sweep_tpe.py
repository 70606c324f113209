"""Search by Optuna's tree-structured Parzen estimator, and Optuna's rule for stopping early.

Optuna's database is the record of all trials. A trial that an interrupted sweep left running is
taken up again with the same parameters. The estimator gets a seed of its own for every trial, and
trials are chosen in groups of a fixed size, so that what it chooses follows from the groups before,
whether or not the sweep was interrupted.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ssdistill.chain.sweep_points import Outcome, Point
from ssdistill.errors import UserError, one_line
from ssdistill.experiment.sweep import SweepSettings, Watched
from ssdistill.experiment.sweep_values import Choices, Range
from ssdistill.train.seeding import derive_seed

if TYPE_CHECKING:
    from optuna import Study, Trial

DATABASE = "optuna.db"
LINE = "outcome"
"""Attribute of a trial: the line of ``sweep.jsonl``."""
MOST_SEED = 2**32
Direction = Literal["maximize", "minimize"]


def require_optuna() -> None:
    """Make sure that Optuna can be imported, and says only what goes wrong.

    Raises:
        UserError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise UserError(
            "sweep.search=tpe requires Optuna: pip install 'ssdistill[sweep]', or set "
            "sweep.search=random"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def open_study(storage: str, name: str, direction: Direction | None = None) -> "Study":
    """The study of a sweep.

    Args:
        direction: ``maximize`` or ``minimize``, of one to be created if there is none; None opens
            one that exists.

    Raises:
        UserError: Optuna is missing, or the storage cannot be opened.
    """
    require_optuna()
    import optuna

    try:
        if direction is None:
            return optuna.load_study(storage=storage, study_name=name)
        return optuna.create_study(
            storage=storage, study_name=name, direction=direction, load_if_exists=True
        )
    # Drivers of databases have errors of their own, and need not be installed.
    except Exception as error:
        raise UserError(
            f"sweep.storage {_safe_url(storage)}: cannot be opened ({one_line(error)}); check the "
            "URL, or remove sweep.storage to use a file in the runs folder"
        ) from error


@contextmanager
def storage_errors(storage: str) -> Iterator[None]:
    """Turn what goes wrong with a database into one line.

    Raises:
        UserError: it cannot be read or written.
    """
    from optuna.exceptions import StorageInternalError

    try:
        yield
    except StorageInternalError as error:
        reason = one_line(error.__cause__ or error)
        raise UserError(
            f"sweep.storage {_safe_url(storage)}: failed ({reason}); run the same command again"
        ) from error


def storage_of(settings: SweepSettings, folder: Path) -> str:
    """URL of the database of a sweep."""
    return settings.storage or f"sqlite:///{(folder / DATABASE).resolve()}"


class TpeSearch:
    """Points chosen in groups, each from the outcomes of the groups before it.

    Args:
        settings: of the sweep.
        storage: URL of the database.
        study: name in it.
        role: of the training that is stopped early.
    """

    def __init__(self, settings: SweepSettings, storage: str, study: str, role: str):
        self.settings, self.storage, self.name, self.role = settings, storage, study, role
        self.total = settings.points or 0
        direction: Direction = "maximize" if settings.maximize else "minimize"
        self.study = open_study(storage, study, direction)
        self._trials: dict[int, Trial] = {}

    def ask(self, count: int) -> list[Point]:
        """Trials left running first, then new ones of the same group; in all, ``points``."""
        with storage_errors(self.storage):
            return self._next_trials(count)

    def _next_trials(self, count: int) -> list[Point]:
        import optuna

        points = []
        for frozen in self.study.get_trials(deepcopy=False):
            if len(points) == count:
                return points
            if not frozen.state.is_finished() and frozen.number not in self._trials:
                self._seed(frozen.number)
                trial = optuna.Trial(self.study, frozen._trial_id)
                points.append(self._point(trial))
        trials = self.study.get_trials(deepcopy=False)
        number, size = len(trials), self.settings.at_once
        begun = any(not trial.state.is_finished() for trial in trials)
        # A new group is not begun before the last one has ended.
        end = -(-number // size) * size if begun or number % size else number + size
        for new in range(number, min(end, self.total, number + count - len(points))):
            self._seed(new)
            points.append(self._point(self.study.ask()))
        return points

    def tell(self, point: Point, outcome: Outcome) -> None:
        from optuna.trial import TrialState

        states = {"stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
        trial = self._trials[point.number]
        with storage_errors(self.storage):
            trial.set_user_attr(LINE, outcome.as_json())
            if outcome.status == "finished":
                self.study.tell(trial, outcome.value)
            else:
                self.study.tell(trial, state=states[outcome.status])

    def ended(self) -> list[Outcome]:
        """The outcomes of trials that have ended, as the database has them."""
        ended = [t for t in self.study.get_trials(deepcopy=False) if t.state.is_finished()]
        return [Outcome.from_json(t.user_attrs[LINE]) for t in ended if LINE in t.user_attrs]

    def _seed(self, number: int) -> None:
        import optuna

        seed = derive_seed(self.settings.seed, f"trial {number}") % MOST_SEED
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # Else the points of a group would all be the one that looks best.
            self.study.sampler = optuna.samplers.TPESampler(
                seed=seed, constant_liar=self.settings.at_once > 1
            )

    def _point(self, trial: "Trial") -> Point:
        values = {k: _suggested(trial, k, v) for k, v in self.settings.varied.items()}
        self._trials[trial.number] = trial
        watched = None
        if self.settings.stop_early:
            watched = Watched(
                self.storage,
                self.name,
                trial._trial_id,
                self.role,
                self.settings.stop_early,
                self.settings.held_out,
            )
        return Point(trial.number, values, watched)


def _suggested(trial: "Trial", key: str, values: Choices | Range) -> Any:
    """The value of a parameter in a trial; one that it has already stays as it is."""
    if isinstance(values, Choices):
        return values.by_label[trial.suggest_categorical(key, tuple(values.by_label))]
    low, high = values.ends() if values.step is None else (values.low, values.grid()[-1])
    if values.whole:
        step = int(values.step or 1)
        return trial.suggest_int(key, int(low), int(high), step=step, log=values.log)
    return trial.suggest_float(key, low, high, step=values.step, log=values.log)


def _safe_url(storage: str) -> str:
    """A URL without its password."""
    scheme, found, rest = storage.partition("://")
    return f"{scheme}://…@{rest.rpartition('@')[2]}" if found and "@" in rest else storage


class WatchedTrial:
    """A trial in progress, in whichever process its training runs.

    Args:
        watched: where the trial is kept.

    Raises:
        UserError: the storage cannot be opened.
    """

    def __init__(self, watched: Watched):
        require_optuna()
        import optuna

        study = open_study(watched.storage, watched.study)
        study.pruner = optuna.pruners.MedianPruner(n_startup_trials=watched.stop_early.points)
        self.trial = optuna.Trial(study, watched.trial)
        # Criteria are large for good encoders, whatever the sweep makes small.
        self.sign = -1 if study.direction == optuna.study.StudyDirection.MINIMIZE else 1

    def report(self, value: float, position: int) -> None:
        """Note a value of the criterion, unless an interrupted run has noted one there."""
        known = self.trial.storage.get_trial(self.trial._trial_id).intermediate_values
        if position not in known and not math.isnan(value):
            self.trial.report(self.sign * value, position)

    def should_stop(self) -> bool:
        """Whether its best value is below the median of finished trials at the same position."""
        return self.trial.should_prune()
