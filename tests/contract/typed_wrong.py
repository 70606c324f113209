"""Wrong uses of the public names: a type checker reports every line marked with a rule.

It is checked and never run.
"""

import ssdistill
from ssdistill.evaluate.settings import EvaluateSettings
from ssdistill.experiment.schema import Experiment
from ssdistill.settings.registry import LOSSES, PROTOCOLS, SOURCES, STEPS


def public_names() -> None:
    ssdistill.load("runs/model", trusted=True)  # reportCallIssue
    ssdistill.load(3)  # reportArgumentType
    ssdistill.laod("runs/model")  # reportAttributeAccessIssue
    _ = ssdistill.run("a.yaml").verdict  # reportAttributeAccessIssue
    ssdistill.probe(["a"], "digits", image_sizes=32)  # reportCallIssue
    ssdistill.embed("a", "digits", layer="pooled")  # reportArgumentType


def lazily_loaded() -> None:
    ssdistill.evaluate.knn("timm:resnet18", "digits", neighbors=5)  # reportCallIssue
    ssdistill.evaluate.kmn("timm:resnet18", "digits")  # reportAttributeAccessIssue


def made_settings(experiment: Experiment) -> None:
    PROTOCOLS.schema("knn")(neighbors=5)  # reportCallIssue
    PROTOCOLS.schema("knn")(distance="cosin")  # reportArgumentType
    _ = PROTOCOLS.schema("knn")().neighbors  # reportAttributeAccessIssue
    LOSSES.schema("simreg")(depth="4")  # reportArgumentType
    STEPS.schema("export")(runtime="onnx")  # reportArgumentType
    EvaluateSettings(kmn=PROTOCOLS.schema("knn")())  # reportCallIssue
    EvaluateSettings(knn=PROTOCOLS.schema("linear")())  # reportArgumentType
    if experiment.distill is not None:
        _ = experiment.distill.losses["feature"].wieght  # reportAttributeAccessIssue


def changed_settings(experiment: Experiment) -> None:
    experiment.seeds = (1,)  # reportAttributeAccessIssue
    experiment.device.threads = 4  # reportAttributeAccessIssue
    LOSSES.schema("simreg")().weight = 2.0  # reportAttributeAccessIssue
    EvaluateSettings().knn = None  # reportAttributeAccessIssue
    Experiment(name="digits", data=SOURCES.schema("digits")())  # reportCallIssue
    Experiment(schema=2, name="digits", data=SOURCES.schema("digits")())  # reportArgumentType
