"""A tiny experiment, run once: the outputs of every stage, recomputed by hand.

Nothing is written for a runtime, which takes longer than all the rest; what is timed is a constant.
"""

import json
import math
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import ssdistill
from ssdistill.chain import arithmetic
from ssdistill.chain import page_content as content
from ssdistill.chain import report as report_module
from ssdistill.chain import run as run_module
from ssdistill.chain.evaluation import answers_of, label_free_sample, raw_pixels
from ssdistill.chain.page_content import lineage, page_content
from ssdistill.chain.plan import evaluations_of, latency_stage, models_of, plan_stages
from ssdistill.chain.stages import Identity
from ssdistill.chain.training import NOTICES
from ssdistill.chain.workspace import open_workspace
from ssdistill.compress.zeros import zero_masks
from ssdistill.data.recipes import RECIPES
from ssdistill.data.views import eval_view
from ssdistill.evaluate.paired import paired_test
from ssdistill.experiment.reading import load_experiment
from ssdistill.label_free.agreement import agreement
from ssdistill.label_free.collapse import alpha, collapse_metrics
from ssdistill.label_free.lidar import view_metrics
from ssdistill.measure import before_after
from ssdistill.measure.before_after import agreed_on
from ssdistill.measure.model_costs import costs_of
from ssdistill.record.run import load_run, read_metrics
from ssdistill.report.tables.models import scaled
from ssdistill.train.seeding import derive_seed

CONFIG = """
schema: 1
name: whole
profile: smoke
seeds: [0, 3]
data: {kind: npz, path: DATA}
teacher: {encoder: &net {name: resnet10t, stem: small, stem_stride: 2,
  args: {layers: [1, 1, 0, 0], channels: [16, 16, 16, 16], stem_type: deep, stem_width: 8}}}
student: {encoder: *net}
pretrain: {kind: simclr, steps: 3, batch_size: 16, seed: 0}
control: {budgets: [steps, time]}
distill:
  steps: 4
  batch_size: 16
  views: [strong, {recipe: weak, size: 12}]
  losses: {feature: {kind: simreg, depth: 2, pairs: same}}
compare:
  cosine: {steps: 2, batch_size: 16, losses: {feature: {kind: cosine}}}
compress:
  - {kind: prune, ratio: 0.5, round_to: 8}
  - {kind: recover, steps: 2, batch_size: 16}
  - {kind: zeros, sparsity: 0.9, gate: {cka: 1.0, otherwise: keep}}
evaluate: {label_free_images: 30}
device: {precision: fp32, memory_format: contiguous, accelerator: cpu}
tracking: {wandb: disabled, log_every: 1}
paper: {title: A paper, arxiv: "1234.56789", table: Table 1, deviations: [smaller, shorter],
  claims: [{metric: probe/linear/top1, model: distilled, better_than: control}]}
"""
MODELS = ["untrained", "teacher", "control", "control_time", "cosine", "distilled", "pruned"]
MODELS += ["recovered", "zeroed_90"]
KINDS = {"teacher": "simclr", "control": "simclr", "control_time": "simclr"}
KINDS |= {"distilled": "simreg", "cosine": "cosine"}
KINDS |= {"pruned": "prune", "recovered": "recover", "zeroed_90": "zeros"}
"""Method, losses or step of each stage that has one."""
TIMED = {
    f"compress/{name}": 2.0
    for size in ("", "_batch64")
    for name in (
        *(f"latency{size}_ms", f"latency{size}_ms_before", f"speedup{size}"),
        *(f"speedup{size}_low", f"speedup{size}_high"),
    )
}


def timed(before, after, inputs, threads, clock):
    return dict(TIMED), "onnxruntime"


def latency(stage, workspace, tracker):
    """Every model's latency is its place in the table."""
    return {f"compress/latency_ms/{role}": 1.0 + i for i, role in enumerate(stage.parents)}


def write_config(folder):
    generator, labels = np.random.default_rng(0), np.arange(126) % 3
    images = generator.integers(0, 160, (126, 16, 16, 3))
    images[..., 0] += 40 * labels[:, None, None]
    images = images.astype(np.uint8)
    splits = {"train": slice(60), "test": slice(60, None)}
    arrays = {f"{name}_images": images[rows] for name, rows in splits.items()}
    arrays |= {f"{name}_labels": labels[rows] for name, rows in splits.items()}
    np.savez(folder / "data.npz", **arrays)
    path = folder / "whole.yaml"
    path.write_text(CONFIG.replace("DATA", str(folder / "data.npz")))
    return path


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """(workspace, report, what the terminal said) of a finished run."""
    folder = tmp_path_factory.mktemp("whole")
    experiment, _ = load_experiment(write_config(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(before_after, "_timed", timed)
        patch.setattr(arithmetic, "ROUNDS", 2)
        patch.setitem(run_module.BODIES, "latency", latency)
        with run_module.console.capture() as said:
            report = run_module.run(experiment, folder / "runs")
    workspace = open_workspace(experiment, folder / "runs")
    return SimpleNamespace(workspace=workspace, report=report, said=said.get(), patch=patch)


def models(chain, seed=0):
    return models_of(chain.workspace, seed)


def record(chain, stage):
    return load_run(stage.folder(chain.workspace.root))


def record_of(chain, model, seed=0):
    """The report's record of one model and seed."""
    (found,) = (r for r in chain.report.records if (r["model"], r["seed"]) == (model, seed))
    return found


def embedded(chain, role, images, seed=0):
    encoder = chain.workspace.encoder(models(chain, seed)[role])
    with torch.no_grad():
        return encoder(eval_view(torch.from_numpy(images), 16)).embedding_BD


def same_weights(first, second):
    ours, theirs = first.net.state_dict(), second.net.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_every_stage_is_recorded_with_its_work_and_its_parents(chain):
    stages = plan_stages(chain.workspace)
    for stage in stages:
        found = record(chain, stage)
        assert found.status == "finished"
        assert (found.stage, found.role) == (stage.kind, stage.role)
        looked_at = stage.kind == "evaluate"
        assert found.kind == ("" if looked_at else KINDS.get(stage.role, "")), stage.role
        assert (found.digest, found.seed) == (stage.digest, stage.seed)
        assert found.config == stage.config and found.name == "whole" and found.profile == "smoke"
        assert found.fingerprint == chain.workspace.train.fingerprint
        assert found.group == Identity.of(chain.workspace.experiment).group
        assert found.parents.keys() == stage.parents.keys()
        for part, parent in stage.parents.items():
            assert found.parents[part]["digest"] == parent.digest
            assert found.parents[part]["seed"] == parent.seed
    assert {s.seed for s in stages if s.role == "teacher"} == {0}


def test_an_encoder_knows_its_stage_and_the_weights_it_was_made_from(chain):
    for role, stage in models(chain, 3).items():
        folder = stage.folder(chain.workspace.root) / "model"
        description = json.loads((folder / "model.json").read_text())
        lineage_ = description["lineage"]
        assert (lineage_["stage"], lineage_["seed"]) == (stage.digest, stage.seed), role
        assert lineage_["parents"].keys() == stage.parents.keys()
        (artifact,) = record(chain, stage).artifacts.values()
        assert artifact["sha256"] == description["sha256"]


def test_an_artifact_names_the_weights_it_comes_from(chain):
    parents = {"distilled": "teacher", "pruned": "distilled", "recovered": "pruned"}
    sha256 = {
        role: next(iter(record(chain, stage).artifacts.values()))
        for role, stage in models(chain).items()
    }
    for role, parent in parents.items():
        assert sha256[role]["parent_sha256"] == sha256[parent]["sha256"]
    assert sha256["teacher"].get("parent_sha256") is None


def test_the_terminal_says_what_is_done(chain):
    count = len(plan_stages(chain.workspace))
    assert f"{count} stages, {count} to do" in chain.said
    assert "60 training and 66 test images, 16x16" in chain.said
    assert f"[1/{count}] initialize untrained, seed 0" in chain.said
    assert f"[{count}/{count}] latency, seed 3" in chain.said
    assert ", 4 steps" in chain.said and "no labels" not in chain.said
    assert "zeros skipped by its gate: CKA" in chain.said


def test_a_second_run_does_nothing_again(chain, monkeypatch):
    monkeypatch.setattr(run_module, "do", None)
    with run_module.console.capture() as said:
        again = run_module.run(chain.workspace.experiment, chain.workspace.root)
    count = len(plan_stages(chain.workspace))
    assert said.get().count(": cached") == count and f"{count} stages, 0 to do" in said.get()
    assert again.records == chain.report.records
    planned = run_module.dry_run(chain.workspace.experiment, chain.workspace.root)
    assert {p.status for p in planned} == {"finished"} and len(planned) == count


def test_a_student_is_trained_as_long_as_its_config_says(chain):
    steps = {role: record(chain, s).metrics.get("train/steps") for role, s in models(chain).items()}
    assert (steps["teacher"], steps["distilled"], steps["cosine"], steps["recovered"]) == (
        *(3, 4, 2, 2),
    )
    assert steps["control"] == 4 and steps["untrained"] is None
    folder = models(chain)["control_time"].folder(chain.workspace.root)
    budget = json.loads((folder / "budget.json").read_text())
    assert steps["control_time"] == budget["steps"] >= 1
    (ratios,) = (v for k, v in budget.items() if k.startswith("seconds_per_"))
    assert "seconds_per_control_time_step" in budget and ratios["control_time"] == 1
    assert budget["steps"] == max(1, round(4 * ratios["distilled"]))


def test_losses_and_their_weights_are_logged_at_every_step(chain):
    lines = read_metrics(models(chain)["distilled"].folder(chain.workspace.root))
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert all(math.isfinite(line["loss/feature"]) for line in lines)


def test_seeds_and_ways_of_training_end_at_other_weights(chain):
    encoders = {
        (role, seed): chain.workspace.encoder(models(chain, seed)[role])
        for seed in (0, 3)
        for role in ("untrained", "control", "cosine", "distilled")
    }
    weights = {key: e.net.layer1[0].conv1.weight for key, e in encoders.items()}
    keys = list(weights)
    for i, first in enumerate(keys):
        for second in keys[i + 1 :]:
            assert not torch.equal(weights[first], weights[second]), (first, second)
    teachers = [models(chain, seed)["teacher"] for seed in (0, 3)]
    assert teachers[0].digest == teachers[1].digest and {t.seed for t in teachers} == {0}


def test_a_teacher_keeps_the_projector_it_was_trained_with(chain):
    teacher = chain.workspace.encoder(models(chain)["teacher"])
    student = chain.workspace.encoder(models(chain)["distilled"])
    assert teacher.projector is not None and student.projector is None


def test_the_kept_embeddings_are_those_of_some_test_images(chain):
    images = chain.workspace.test.images
    shown = label_free_sample(len(images), 30)
    assert len(images[shown]) == 22 and shown == slice(0, 66, 3)
    for role in ("teacher", "distilled", "recovered"):
        evaluation = evaluations_of(chain.workspace, 0)[role]
        kept_ND = np.load(evaluation.folder(chain.workspace.root) / "gauged_features.npy")
        expected_ND = embedded(chain, role, images)[shown]
        np.testing.assert_allclose(kept_ND, expected_ND.numpy(), atol=1e-5)


def test_label_free_metrics_are_those_of_the_kept_embeddings(chain):
    images = chain.workspace.test.images[label_free_sample(66, 30)]
    theirs_ND = embedded(chain, "teacher", images)
    for role in ("teacher", "distilled", "recovered"):
        ours_ND, metrics = embedded(chain, role, images), record_of(chain, role)["metrics"]
        expected = agreement(ours_ND, theirs_ND, k=10)
        expected |= collapse_metrics(ours_ND) | {"collapse/alpha": alpha(ours_ND)}
        for name, value in expected.items():
            assert metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-4), (role, name)
    assert record_of(chain, "teacher")["metrics"]["agree/cosine"] == pytest.approx(1, abs=1e-5)


def test_label_free_metrics_of_views_are_drawn_by_the_recipe_that_suits_the_data(chain):
    workspace, shown = chain.workspace, label_free_sample(66, 30)
    encoder = workspace.encoder(models(chain)["distilled"])
    index_N, images = torch.arange(66)[shown], workspace.test.images[shown]
    expected = view_metrics(encoder, images, index_N, RECIPES["strong"], 16, torch.device("cpu"))
    metrics = record_of(chain, "distilled")["metrics"]
    assert expected
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize("role", ["untrained", "distilled", "recovered"])
def test_costs_of_a_model_are_those_of_its_encoder_and_its_file(chain, role):
    stage = models(chain)[role]
    encoder = chain.workspace.encoder(stage)
    expected = costs_of(encoder, stage.folder(chain.workspace.root) / "model", encoder)
    metrics = record_of(chain, role)["metrics"]
    assert {name: metrics[name] for name in expected} == expected


@pytest.mark.parametrize("role", ["untrained", "distilled"])
def test_answers_are_what_the_model_says_and_not_the_truth(chain, role):
    evaluation = evaluations_of(chain.workspace, 0)[role]
    answers, metrics = answers_of(evaluation, chain.workspace), record_of(chain, role)["metrics"]
    assert answers.keys() == {"targets", "linear", "knn", "low_shot"} or {"targets", "linear"} <= (
        answers.keys()
    )
    assert answers["targets"].tolist() == (np.arange(60, 126) % 3).tolist()
    for protocol in answers.keys() - {"targets"}:
        top1 = 100 * (answers[protocol] == answers["targets"]).mean()
        assert metrics[f"probe/{protocol}/top1"] == pytest.approx(top1)
        assert top1 < 100
        seconds = record(chain, evaluation).metrics[f"time/probe/{protocol}"]
        assert 0 < seconds < record(chain, evaluation).wall_seconds


def test_a_stage_without_answers_has_none(chain, tmp_path):
    stage = models(chain)["distilled"]
    assert answers_of(stage, chain.workspace) == {}


def test_there_is_one_record_a_model_and_seed_in_the_order_of_the_table(chain):
    expected = [(m, s) for m in MODELS for s in ((0,) if m == "teacher" else (0, 3))]
    assert [(r["model"], r["seed"]) for r in chain.report.records] == expected
    for line in chain.report.records:
        assert (line["experiment"], line["profile"]) == ("whole", "smoke")
        assert line["protocol"]["data"] == chain.workspace.source.description
        assert line["protocol"]["evaluate"]["gauge_images"] == 30
        assert line["provenance"]["python"]
    trained = record_of(chain, "distilled", 3)["metrics"]
    assert trained["train/steps"] == 4
    assert "train/steps" not in record_of(chain, "untrained")["metrics"]


def test_latencies_stand_with_their_model(chain):
    roles = list(latency_stage(chain.workspace, 3).parents)
    assert roles == MODELS
    for role in set(MODELS) - {"teacher"}:
        metrics = record_of(chain, role, 3)["metrics"]
        assert metrics["compress/latency_ms"] == 1.0 + roles.index(role)


def test_paired_tests_are_against_the_teacher_and_what_was_compressed(chain):
    answers = {
        role: answers_of(evaluations_of(chain.workspace, 3)[role], chain.workspace)
        for role in MODELS
    }
    for role in ("control", "distilled", "pruned"):
        references = ["teacher"] if role == "distilled" else ["teacher", "distilled"]
        tests = record_of(chain, role, 3)["paired"]
        assert list(dict.fromkeys(t["reference"] for t in tests)) == references
        for test in tests:
            name = test["protocol"]
            theirs = answers[test["reference"]][name]
            expected = paired_test(answers[role]["targets"], answers[role][name], theirs)
            assert {k: test[k] for k in asdict(expected)} == asdict(expected)
    assert "paired" not in record_of(chain, "teacher")


def test_a_step_is_measured_on_its_file_against_its_input_and_the_original(chain):
    workspace = chain.workspace
    stage = models(chain)["recovered"]
    images = workspace.images(1024, derive_seed(0, "measured"))
    assert len(images) == 60
    before, after = (workspace.encoder(models(chain)[role]) for role in ("pruned", "recovered"))
    original = workspace.encoder(models(chain)["distilled"])
    metrics = record(chain, stage).metrics
    parent, first, last = (
        agreed_on(a, b, images) for a, b in ((before, after), (original, before), (original, after))
    )
    for name in ("cka", "cosine"):
        value = metrics[f"agree/parent/{name}"]
        assert value == pytest.approx(parent[f"agree/{name}"], rel=1e-4)
        value = metrics[f"agree/original/{name}_before"]
        assert value == pytest.approx(first[f"agree/{name}"], rel=1e-4)
        value = metrics[f"agree/original/{name}"]
        assert value == pytest.approx(last[f"agree/{name}"], rel=1e-4)
    assert metrics["compress/accepted"] == 1 and metrics["compress/speedup"] == 2.0
    assert metrics["compress/params"] == metrics["compress/params_before"]


def test_what_a_step_reports_becomes_its_metrics_and_words(chain):
    stage = models(chain)["pruned"]
    found = record(chain, stage)
    assert 0 < found.metrics["compress/params"] < found.metrics["compress/params_before"]
    (artifact,) = found.artifacts.values()
    assert artifact["runtime"] == "onnxruntime"
    assert record(chain, models(chain)["recovered"]).artifacts["recovered"]["target"] == "teacher"
    step = record_of(chain, "pruned")["metrics"]
    assert step["step/accepted"] == 1
    assert step["step/cka"] == found.metrics["agree/original/cka"]


def test_a_recovery_trains_and_leaves_its_input_as_it_was(chain):
    pruned, recovered = (chain.workspace.encoder(models(chain)[r]) for r in ("pruned", "recovered"))
    assert not same_weights(pruned, recovered)
    assert pruned.net.layer1[0].conv1.out_channels == recovered.net.layer1[0].conv1.out_channels


def test_a_step_whose_gate_is_closed_hands_on_its_input(chain):
    stages = models(chain)
    recovered, zeroed = (chain.workspace.encoder(stages[r]) for r in ("recovered", "zeroed_90"))
    assert record(chain, stages["zeroed_90"]).metrics["compress/accepted"] == 0
    assert same_weights(recovered, zeroed) and not zero_masks(zeroed)
    notice = "zeroed_90: the step was skipped by its gate; the row shows the model before it."
    assert notice in chain.report.notices
    assert sum("skipped" in n for n in chain.report.notices) == 1


def test_the_report_says_what_its_reader_must_know(chain):
    notices = chain.report.notices
    assert "Claims of: A paper (1234.56789, Table 1)." in notices
    assert "Deviations: smaller; shorter." in notices
    assert any(n.startswith("Profile smoke: not comparable") for n in notices)
    assert not any("Digits" in n or "No labels" in n for n in notices)
    page = (chain.report.folder / "report.html").read_text()
    assert "60 training and 66 test images of 16 pixels a side" in page
    assert "A simclr teacher, distilled into a smaller student, compressed by prune" in page
    assert "2 seeds, profile smoke" in page
    assert all(notice.split(":")[0] in page for notice in notices)
    size = record_of(chain, "teacher")["metrics"]["compress/bytes"]
    assert f"linear top-1, {scaled(size, 'bytes')}" in page
    assert chain.workspace.train.fingerprint[:8] in page


def test_the_experiment_has_a_record_of_its_own_with_means_over_seeds(chain):
    run = load_run(chain.report.folder)
    assert (run.stage, run.name, run.seed) == ("report", "whole", 0)
    key = "probe/linear/top1"
    values = [record_of(chain, "control", seed)["metrics"][key] for seed in (0, 3)]
    assert run.metrics[f"control/{key}"] == pytest.approx(np.mean(values))
    lines = read_metrics(chain.report.folder)
    assert [line[f"control/{key}"] for line in lines] == values
    stages = {str(seed): models(chain, seed)["control"].digest for seed in (0, 3)}
    assert run.parents["control"] == stages
    kept = (chain.report.folder / "records.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in kept] == chain.report.records


def test_claims_are_judged_and_published_with_the_records(chain, tmp_path):
    (verdict,) = chain.report.verdicts
    gains = [
        record_of(chain, "distilled", s)["metrics"]["probe/linear/top1"]
        - record_of(chain, "control", s)["metrics"]["probe/linear/top1"]
        for s in (0, 3)
    ]
    assert verdict.n == 2 and verdict.mean == pytest.approx(np.mean(gains))
    chain.report.publish(tmp_path / "new")
    assert json.loads((tmp_path / "new/claims.json").read_text())[0]["model"] == "distilled"
    lines = (tmp_path / "new/records.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == chain.report.records
    replace(chain.report, claims=()).publish(tmp_path / "new")
    assert not (tmp_path / "new/claims.json").exists()


def test_a_report_opens_the_models_of_the_first_seed(chain):
    assert list(chain.report.models) == MODELS
    found = ssdistill.load(chain.report.models["distilled"])
    assert same_weights(found, chain.workspace.encoder(models(chain, 0)["distilled"]))


def nearest_rows(chain, role, queries, k):
    """Rows of the label-free sample most similar to each query, without the query itself."""
    images = chain.workspace.test.images[label_free_sample(66, 30)]
    z_ND = F.normalize(embedded(chain, role, images))
    cosine = z_ND[queries] @ z_ND.T
    cosine[range(len(queries)), queries] = -9
    return cosine.argsort(1, descending=True)[:, :k].tolist()


def test_neighbors_are_the_most_similar_of_the_label_free_sample(chain):
    found = page_content(chain.workspace, chain.report.records)["neighbors"]
    images = chain.workspace.test.images[label_free_sample(66, 30)]
    queries = np.linspace(0, 21, 8).astype(int)
    assert all(np.array_equal(a, images[q]) for a, q in zip(found.queries, queries, strict=True))
    rows = {role: nearest_rows(chain, role, queries, 6) for role in ("teacher", "distilled")}
    for shown, role in ((found.teacher, "teacher"), (found.student, "distilled")):
        for row_images, expected in zip(shown, rows[role], strict=True):
            assert len(row_images) == 6
            assert all(
                np.array_equal(p, images[i]) for p, i in zip(row_images, expected, strict=True)
            )
    shared = [[i in b for i in a] for a, b in zip(rows["distilled"], rows["teacher"], strict=True)]
    assert found.shared == shared


def test_charts_show_what_differs_in_size_and_every_score(chain):
    drawn = page_content(chain.workspace, chain.report.records)
    sized = ["teacher", "control", "control_time", "distilled", "pruned", "recovered", "zeroed_90"]
    assert [p.label for p in drawn["sizes"]] == sized
    assert [p.label for p in drawn["latencies"]] == sized
    assert [s.label for s in drawn["scores"]] == MODELS
    assert drawn["chain"] == ["distilled", "pruned", "recovered", "zeroed_90"]
    values = [record_of(chain, "control", s)["metrics"]["probe/linear/top1"] for s in (0, 3)]
    (score,) = (s for s in drawn["scores"] if s.label == "control")
    assert score.value == pytest.approx(np.mean(values))
    assert score.samples == tuple(values)
    (size,) = (p for p in drawn["sizes"] if p.label == "control")
    costs = [record_of(chain, "control", s)["metrics"]["compress/bytes"] for s in (0, 3)]
    assert size.cost == pytest.approx(np.mean(costs))
    assert drawn["fronts"] == []


def test_curves_are_those_of_the_trainings_a_reader_compares(chain):
    titles = [c.title for c in page_content(chain.workspace, chain.report.records)["curves"]]
    stages = list(dict.fromkeys(title.split(":")[0] for title in titles))
    assert stages == ["teacher", "control", "distilled", "recovered"]
    assert {title.split(": ")[1].split()[0] for title in titles} <= {
        "losses",
        "embedding",
        "effective",
    }
    assert "distilled: losses" in titles


def test_confusions_are_of_teacher_student_and_last_model(chain):
    charts = page_content(chain.workspace, chain.report.records)["confusions"]
    titles = [chart.args[2] for chart in charts]
    assert [title.split(",")[0] for title in titles] == ["teacher", "distilled", "zeroed_90"]
    answers = answers_of(evaluations_of(chain.workspace, 0)["distilled"], chain.workspace)
    expected = np.zeros((3, 3), int)
    np.add.at(expected, (answers["targets"], answers["linear"]), 1)
    assert np.array_equal(charts[1].args[0], expected)


def test_the_shown_views_are_the_students(chain):
    grid = page_content(chain.workspace, chain.report.records)["views"]
    assert len(grid.rows) == 2 and all(len(row) == 8 for row in grid.rows)
    assert list(grid.columns) == [str(n) for n in range(1, 9)] and "(distilled)" in grid.caption
    kept = np.load(models(chain)["distilled"].folder(chain.workspace.root) / "views.npy")
    assert all(np.array_equal(a, b) for a, b in zip(grid.rows[1], kept[1], strict=True))
    # The second view has 12 pixels a side; the rest is white.
    assert (kept[1][:, 12:] == 255).all() and (kept[1][:, :, 12:] == 255).all()
    assert not (kept[1][:, :12, :12] == 255).all()


def test_a_lineage_goes_back_to_what_compression_was_given(chain):
    stages = models(chain)
    assert lineage(stages["recovered"]) == ["distilled", "pruned", "recovered"]
    assert lineage(stages["distilled"]) == ["distilled"]
    assert lineage(stages["teacher"]) == []


def test_raw_pixels_are_shrunk_and_gray_ones_counted_once(chain):
    workspace = chain.workspace
    x_BCHW = torch.rand(2, 3, 32, 32)
    found = raw_pixels(workspace)(x_BCHW).embedding_BD
    assert torch.allclose(found, F.adaptive_avg_pool2d(x_BCHW, 16).flatten(1))
    assert raw_pixels(workspace)(x_BCHW[..., :8, :8]).embedding_BD.shape == (2, 3 * 64)
    images = workspace.train.images.copy()
    images[...] = images[..., :1]
    gray = SimpleNamespace(train=SimpleNamespace(images=images))
    assert raw_pixels(gray)(x_BCHW).embedding_BD.shape == (2, 256)
    images[0, 0, 0, 2] ^= 1
    assert raw_pixels(gray)(x_BCHW).embedding_BD.shape == (2, 768)


def test_what_a_loaded_teacher_says_is_noticed(chain, monkeypatch):
    from ssdistill.chain.report import notices_of

    path = models(chain)["teacher"].folder(chain.workspace.root) / NOTICES
    path.write_text('["left out: a head"]')
    try:
        assert "teacher: left out: a head." in notices_of(chain.workspace)
    finally:
        path.unlink()


def test_without_labels_only_what_needs_none_is_announced(chain, monkeypatch):
    from ssdistill.chain.report import notices_of

    monkeypatch.setattr(type(chain.workspace.source), "has_labels", False)
    with run_module.console.capture() as said:
        run_module.announce(chain.workspace, plan_stages(chain.workspace))
    assert "no labels: skipping evaluation" in said.get()
    assert any("No labels: evaluation skipped" in n for n in notices_of(chain.workspace))


def test_drawing_needs_at_least_two_latencies(chain):
    records = [
        r | {"metrics": {k: v for k, v in r["metrics"].items() if "latency" not in k}}
        if r["model"] != "distilled"
        else r
        for r in chain.report.records
    ]
    assert page_content(chain.workspace, records)["latencies"] == []
    assert content.SHOWN_QUERIES == 8


def test_without_answers_no_confusion_is_drawn(chain, monkeypatch):
    monkeypatch.setattr(content, "answers_of", lambda evaluation, workspace: {})
    assert page_content(chain.workspace, chain.report.records)["confusions"] == []


def test_without_a_distilled_student_there_are_no_neighbors_of_two(chain, monkeypatch):
    def without(workspace, seed):
        found = evaluations_of(workspace, seed)
        del found["distilled"]
        return found

    monkeypatch.setattr(content, "evaluations_of", without)
    assert content._neighbors(chain.workspace) is None


@pytest.mark.parametrize(
    ("paper", "notices"),
    [
        (None, []),
        (SimpleNamespace(title="", deviations=()), []),
        (SimpleNamespace(title="", deviations=("a", "b")), ["Deviations: a; b."]),
    ],
)
def test_deviations_from_a_paper_are_told_where_there_are_any(paper, notices, monkeypatch):
    monkeypatch.setattr(report_module, "models_of", lambda workspace, seed: {})
    monkeypatch.setattr(report_module, "evaluations_of", lambda workspace, seed: {})
    experiment = SimpleNamespace(seeds=(0,), paper=paper, profile="paper")
    source = SimpleNamespace(kind="folder", has_labels=True)
    workspace = SimpleNamespace(experiment=experiment, source=source)
    assert report_module.notices_of(workspace) == notices


def test_among_images_that_look_the_same_as_many_neighbors_are_shown(monkeypatch, make_store):
    # The image itself is then not always among the nearest that are requested.
    names = dict.fromkeys(("teacher", "distilled"))
    monkeypatch.setattr(content, "evaluations_of", lambda workspace, seed: names)
    same_ND = np.ones((20, 3), dtype=np.float32)
    monkeypatch.setattr(content, "sample_features", lambda evaluation, workspace: same_ND)
    experiment = SimpleNamespace(seeds=(0,), evaluate=None, all_teachers=["teacher"])
    workspace = SimpleNamespace(experiment=experiment, test=make_store(20))
    found = content._neighbors(workspace)
    assert [len(row) for row in (*found.teacher, *found.student)] == [6] * 16


def test_the_report_is_recorded_with_the_images_it_is_about(chain):
    run = load_run(chain.report.folder)
    assert run.fingerprint == chain.workspace.train.fingerprint
    assert run.config["seeds"] == [0, 3] and run.config["name"] == "whole"
