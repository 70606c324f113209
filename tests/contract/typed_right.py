"""Right uses of the public names: a type checker has nothing to say of this file.

It is checked and never run.
"""

from typing import TYPE_CHECKING, Literal, assert_type

import ssdistill
from ssdistill.evaluate.result import Result
from ssdistill.evaluate.settings import EvaluateSettings
from ssdistill.experiment.schema import Experiment
from ssdistill.losses import Loss, LossSettings
from ssdistill.settings.registry import LOSSES, METHODS, PROTOCOLS, SOURCES, STEPS

if TYPE_CHECKING:
    from numpy import ndarray

    from ssdistill.evaluate.comparing.findings import Probed
    from ssdistill.label_free.embedding.embedded import Embedded
    from ssdistill.report.verdict import Verdict
    from ssdistill.settings.kinds.losses import SimRegSettings
    from ssdistill.settings.kinds.protocols import KnnSettings, LinearSettings


def public_names() -> None:
    ssdistill.load("runs/model", trust=True)
    report = ssdistill.run("configs/quickstart.yaml", "seeds=[1]", root="runs", on="ray")
    assert_type(report.verdicts, list[Verdict])
    assert_type(ssdistill.reproduce("configs/quickstart.yaml")[0], Verdict)
    assert_type(ssdistill.probe(["a", "b"], "digits", ["knn"], image_size=32), Probed)
    assert_type(ssdistill.embed("a", "digits", "a.npy", topk=3, layer="patch"), Embedded)
    assert_type(ssdistill.embed("a", "digits"), tuple[ndarray, list[str]])


def lazily_loaded() -> None:
    assert_type(ssdistill.evaluate.knn("timm:resnet18", "digits", k=5, ks=[1, 5]), Result)
    assert_type(ssdistill.evaluate.transfer("runs/model", datasets=["digits"]), Result)
    assert_type(ssdistill.losses.Loss, type[Loss])


def made_settings(experiment: Experiment) -> None:
    assert_type(PROTOCOLS.schema("knn"), type[KnnSettings])
    assert_type(PROTOCOLS.schema("knn")(k=5, distance="cosine").k, int | None)
    assert_type(LOSSES.schema("simreg")(depth=2, weight=2.0).weight, float)
    assert_type(METHODS.schema("byol").model_validate({}).steps, int | None)
    assert_type(STEPS.schema("prune")().kind, Literal["prune"])
    assert_type(
        STEPS.schema("export")(runtime="openvino").runtime,
        Literal["aot_inductor", "executorch", "onnxruntime", "openvino", "torch_export"],
    )

    made = Experiment(schema=1, name="digits", data=SOURCES.schema("digits")(), seeds=(0, 1))
    assert_type(made.schema_version, Literal[1])

    looks = EvaluateSettings(
        knn=PROTOCOLS.schema("knn")(k=5), linear=PROTOCOLS.schema("linear")(folds=3), pixels=True
    )
    assert_type(looks.linear, LinearSettings | None)

    if experiment.distill is not None:
        loss = experiment.distill.losses["feature"]
        assert_type(loss.weight_at(0, 10), float)
        if loss.kind == "simreg":
            assert_type(loss, SimRegSettings)
            assert_type(loss.center_teacher, bool)


def built(kind: str, shapes: object) -> None:
    assert_type(LOSSES[kind], type[Loss])
    assert_type(LOSSES.schema(kind), type[LossSettings])
    assert_type(LOSSES.build(LOSSES.schema("simreg")(), shapes), Loss)
