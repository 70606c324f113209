"""Every check fails for a class that breaks its rule, and says so in one line."""

import math
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

from ssdistill.artifacts.runtimes import Runtime, RuntimeModel
from ssdistill.compress import Step
from ssdistill.data.array_split import ArraySplit
from ssdistill.data.splits import Source
from ssdistill.evaluate.classification import classify
from ssdistill.evaluate.protocols import Measurements, Protocol
from ssdistill.losses import Loss, vectors
from ssdistill.losses.simreg import SimReg
from ssdistill.models.backbones import build_encoder
from ssdistill.models.spec import EncoderSettings
from ssdistill.pretrain import Method
from ssdistill.settings.registry import (
    LOSSES,
    METHODS,
    PROTOCOLS,
    RUNTIMES,
    SOURCES,
    STEPS,
    TEACHERS,
)
from ssdistill.teachers import Teacher
from ssdistill.testing import (
    LOSS_CHECKS,
    METHOD_CHECKS,
    PROTOCOL_CHECKS,
    RUNTIME_CHECKS,
    SOURCE_CHECKS,
    STEP_CHECKS,
    TEACHER_CHECKS,
    Candidate,
    check_source,
    run_checks,
)


class WrongLoss(Loss):
    """It does all wrong

    The width is a secret.
    """

    kind = "Wrong Loss"
    family = ""
    paper = "one\ntwo"
    reads = "embedding, dreams"
    accumulates = True
    minimum_at_teacher = True
    exact_under_sharding = True

    def __init__(self, shapes, *, width: int = 3, **others):
        super().__init__(shapes)
        self.calls = 0
        self.unused = nn.Linear(width, 2)

    def forward(self, student, teacher, batch):
        self.calls += 1
        (s_BD, *_), (t_BD, *_) = vectors(student), vectors(teacher)
        similarity_BB = s_BD[:, :2].detach() @ t_BD[:, :2].T
        return similarity_BB.sum(0) * self.calls


class Loud(SimReg):
    """Overflows, and remembers what it does not save.

    ```yaml
    losses: {other: {kind: simreg}}
    ```
    """

    kind = "loud"
    accumulates = False

    def per_image(self, student, teacher, batch):
        found_B = super().per_image(student, teacher, batch)
        self.calls = getattr(self, "calls", 0) + 1
        return found_B * self.calls + found_B.std() + vectors(student)[0].half().pow(4).sum(1)


class WrongMethod(Method):
    """Trains one tensor that nothing reads."""

    kind = "wrong_method"
    paper = ""
    recipes = ("dreams",)
    multicrop = True
    accumulates = True

    def __init__(self, encoder):
        super().__init__(encoder)
        self.unused = nn.Parameter(torch.ones(2, 2))
        self.projector = nn.Sequential(nn.Linear(encoder.embed_dim, 4), nn.Softplus())
        self.calls = 0

    def forward(self, views, batch):
        self.calls += 1
        z_BD = self.projector(self.encoder(views[0]).embedding_BD)
        self.last_embeddings = [z_BD]
        small = math.inf if views[-1].shape[-1] < 16 else 0.0
        half = (0.02 * z_BD.std(0).sum() * self.calls).half().sum()
        return {"one": half + small}


class WrongStep(Step):
    """Changes the model that it is given."""

    kind = "wrong_step"
    paper = "none"
    makes = "wrong_step"

    @classmethod
    def expand(cls, settings):
        return [settings, settings.model_copy(update={"gate": None})] if settings.gate else []

    @classmethod
    def row(cls, settings):
        return "a row"

    def apply(self, model, context):
        """Return it."""
        return model


class WrongProtocol(Protocol):
    """Fits to the test images, in training mode, with global random numbers."""

    kind = "wrong_protocol"
    paper = ""

    def __init__(self, *, seed: int = 0):
        self.seed = seed

    def evaluate(self, subject):
        subject.encoder.train()
        images = torch.from_numpy(subject.test.images).movedim(-1, 1) / 255
        with torch.no_grad():
            subject.encoder(images)
            z_ND = subject.encoder(images).embedding_BD
        labels = np.asarray(subject.test.labels)
        guesses = np.random.permutation(labels)  # noqa: NPY002
        best = float(z_ND.mean())
        return Measurements(
            {"Top 1": 700.0}, classify(labels, predictions=guesses), details={"lr": best}
        )


class WrongSource(Source):
    """Another image every time."""

    kind = "wrong_source"
    default_image_size = 0
    default_recipe = "dreams"
    description = "two\nlines"
    has_test = False

    def __init__(self, *, count: int = 6):
        self.rng = np.random.default_rng()
        self.total = count

    def split(self, name):
        return self._split(name)

    def _split(self, name):
        found = self.rng.integers(0, 256, (self.total, 8, 8)).astype(np.uint8)
        split = ArraySplit("it", str(found.sum()), lambda: found, lambda: np.arange(3))
        split.name = lambda i: "one name"
        split.weights = lambda: -np.ones(self.total)
        split.array = lambda: 255 - found
        return split


class WrongTeacher(Teacher):
    """Random weights in training mode."""

    kind = "wrong_teacher"

    def __init__(self):
        self.loaded = 0

    def identity(self):
        return {"loaded": self.loaded}

    def trained_on(self):
        return {"mean": {1}}

    def load(self, image_spec):
        self.loaded += 1
        args = {"layers": [1, 1, 0, 0], "channels": [8, 16, 16, 16]}
        if len(image_spec.mean) != 3:
            raise ValueError("only color")
        settings = EncoderSettings(name="resnet10t", args=args)
        encoder = build_encoder(settings, image_spec.image_size, (100.0,) * 3, (50.0,) * 3)
        encoder.projector = nn.Sequential(nn.Linear(16, 2), nn.Softplus())
        return encoder, ["two\nlines"]


class WrongFile(RuntimeModel):
    runtime = "another"

    def _open(self, threads):
        self.input_shape = (3, 16, 16)

    def _run(self, inputs):
        return np.zeros((len(inputs), 16), np.float32)

    @property
    def input_dtype(self):
        return np.dtype(np.float32)

    @classmethod
    def version(cls):
        return ""


class WrongRuntime(Runtime):
    """writes no model"""

    kind, paper, module = "wrong_runtime", "", "torch"
    file = "model.onnx"
    opens = WrongFile

    def write(self, model, path):
        model.set_taps(())
        path.write_bytes(b"anything")


def failing(registry, cls, checks):
    """Names of the checks that fail, each with a line."""
    candidate = Candidate(registry, cls)
    quick = {name: check for name, check in checks.items() if "two_processes" not in name}
    quick.pop("exact_under_sharding", None)
    with pytest.raises(AssertionError) as failed:
        run_checks(quick, candidate)
    first, *lines = str(failed.value).splitlines()
    assert first == f"{cls.__name__} ({registry.noun}) fails {len(lines)} of {len(quick)} checks:"
    return {line.strip().partition(": ")[0] for line in lines}, set(quick)


def test_faults_of_a_loss():
    found, _ = failing(LOSSES, WrongLoss, LOSS_CHECKS)
    assert {
        *("kind", "summary", "documented_settings", "description", "scalar"),
        *("scalar_of_further_views", "gradients", "resume", "minimum_at_teacher", "accumulates"),
        *("networks", "microbatches", "trains_cnn_cnn"),
    } <= found
    found, _ = failing(LOSSES, Loud, LOSS_CHECKS)
    assert {"documented_settings", "float16_of_large_features", "resume", "networks"} <= found


def test_faults_of_a_method():
    found, _ = failing(METHODS, WrongMethod, METHOD_CHECKS)
    assert {
        *("description", "scalars", "gradients", "last_embeddings", "bfloat16", "float16"),
        *("resume", "smaller_views", "export", "accumulates"),
    } <= found


def test_faults_of_a_step():
    found, _ = failing(STEPS, WrongStep, STEP_CHECKS)
    assert {"description", "row", "stages", "model_untouched"} <= found


def test_faults_of_a_protocol():
    found, _ = failing(PROTOCOLS, WrongProtocol, PROTOCOL_CHECKS)
    assert {
        *("description", "encoder_untouched", "global_generators", "repeatable", "metrics"),
        *("accuracy", "chosen_without_test_images", "test_labels", "single_answers"),
        *("seen_once", "no_test_labels"),
    } <= found


def test_faults_of_a_source():
    found, every = failing(SOURCES, WrongSource, SOURCE_CHECKS)
    left = {"kind", "summary", "unknown_setting", "images", "threads"}
    assert found >= every - left


def test_faults_of_a_teacher():
    found, _ = failing(TEACHERS, WrongTeacher, TEACHER_CHECKS)
    assert {
        *("identity", "trained_on", "encoder", "normalization", "repeatable"),
        *("export", "other_images"),
    } <= found


def test_faults_of_a_runtime():
    found, _ = failing(RUNTIMES, WrongRuntime, RUNTIME_CHECKS)
    assert {
        *("summary", "description", "model_untouched", "agreement", "model", "damaged_files"),
        *("uint8", "token_ids", "unwritable"),
    } <= found


def test_one_fault_is_one_line():
    with pytest.raises(AssertionError) as failed:
        run_checks({"summary": LOSS_CHECKS["summary"]}, Candidate(LOSSES, WrongLoss))
    assert str(failed.value) == (
        "WrongLoss (loss): summary: the docstring must begin with a sentence in one line, with a ."
    )


def test_a_setting_without_a_type_is_named():
    class Untyped(Loss):
        """A loss."""

        kind = "untyped"

        def __init__(self, shapes, *, power=2):
            super().__init__(shapes)

    with pytest.raises(AssertionError, match="the setting power has no type"):
        Candidate(LOSSES, Untyped).schema  # noqa: B018


def test_checks_leave_torchs_random_numbers_alone():
    before = torch.get_rng_state()
    run_checks({"scalar": LOSS_CHECKS["scalar"]}, Candidate(LOSSES, SimReg))
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_of_pytest_is_imported():
    code = "import sys, ssdistill.testing; assert 'pytest' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


SCRIPT = '''
from ssdistill.losses import Loss, vectors
from ssdistill.settings.registry import LOSSES
from ssdistill.testing import LOSS_CHECKS, Candidate, run_checks


class OfAScript(Loss):
    """Compares images of its own process alone, but says that it is exact."""

    kind = "of_a_script"
    family = "relational"
    paper = "none"
    exact_under_sharding = True

    def forward(self, student, teacher, batch):
        (s_BD, *_), (t_BD, *_) = vectors(student), vectors(teacher)
        return (s_BD @ s_BD.T - 0.1 * s_BD.sum() * t_BD.mean()).square().mean()


names = "two_processes", "exact_under_sharding"
run_checks({name: LOSS_CHECKS[name] for name in names}, Candidate(LOSSES, OfAScript))
'''


def test_a_class_of_a_script_is_checked_in_two_processes(tmp_path):
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    words = [sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run(words, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("AssertionError: OfAScript (loss): exact_under_sharding: loss/0 differs")


def test_what_passes_says_nothing():
    assert check_source(SOURCES["digits"]) is None
    with pytest.raises(AssertionError, match="WrongSource"):
        check_source(WrongSource, count=4)
