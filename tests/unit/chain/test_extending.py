"""A finished training goes on for more steps, from its last checkpoint."""

import json
import shutil

import numpy as np
import pytest
import torch

from ssdistill.artifacts.artifact import load
from ssdistill.chain import tasks
from ssdistill.chain.extending import extension
from ssdistill.chain.run import dry_run, run
from ssdistill.errors import UserError
from ssdistill.experiment.reading import load_experiment
from ssdistill.train.seeding import seed_generators
from ssdistill.train.settings import TrainSettings

NETWORK = {
    "name": "resnet10t",
    "args": {
        "layers": [1, 1, 0, 0],
        "channels": [8, 8, 8, 8],
        "stem_type": "deep",
        "stem_width": 8,
    },
    "stem": "small",
}
CONSTANT = {"schedule": "constant", "warmup": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images.npz"
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3)).astype(np.uint8)
    np.savez(path, train_images=images, test_images=images[:20])
    return path


def experiment(data, steps=4, optim=CONSTANT, extend=None, kind="simclr", **more):
    device = {"precision": "fp32", "memory_format": "contiguous", "threads": 1}
    tree = {
        "schema": 1,
        "name": "extended",
        "data": {"kind": "npz", "path": str(data)},
        "teacher": {"encoder": NETWORK},
        "pretrain": {"kind": kind, "steps": steps, "batch_size": 10, "optim": optim},
        "evaluate": None,
        "keep_checkpoints": True,
        "device": device,
    }
    if extend:
        tree["pretrain"]["extend"] = str(extend)
    return load_experiment(tree | more)[0]


def trained(folder):
    return load(folder).state_dict()


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.fixture(scope="module")
def short(data, tmp_path_factory):
    """A finished training of four steps: the folder of its stage, without the seed."""
    report = run(experiment(data), tmp_path_factory.mktemp("short"))
    return report.models["simclr"].parents[1]


def test_it_is_as_if_it_had_been_that_long_from_the_start(data, tmp_path, monkeypatch):
    # Heads are drawn by the hash of a stage, which contains the number of steps.
    monkeypatch.setattr(tasks, "seed_generators", lambda seed, *_: seed_generators(seed, "same"))
    short = run(experiment(data), tmp_path / "short").models["simclr"].parents[1]
    long = run(experiment(data, steps=7), tmp_path / "long")
    extended = run(experiment(data, steps=7, extend=short), tmp_path / "extended")
    one, two = long.models["simclr"], extended.models["simclr"]
    assert equal(trained(one), trained(two)) and not equal(trained(one), trained(short / "s0"))
    lines = [
        [json.loads(line) for line in (model.parent / "metrics.jsonl").read_text().splitlines()]
        for model in (one, two)
    ]
    losses = [{line["step"]: line["loss/total"] for line in of} for of in lines]
    assert losses[1].items() >= losses[0].items() and (two.parent / "views.npy").is_file()
    assert one.parents[1].name != two.parents[1].name  # another stage, by its hash


def test_it_is_said_where_it_goes_on(data, short, tmp_path, capsys):
    dry_run(experiment(data, steps=6, extend=short / "s0"), short.parents[1])
    assert "simclr, seed 0: goes on at step 4 of 6\n" in capsys.readouterr().err


def test_a_schedule_is_that_of_the_whole_length(data, tmp_path, capsys):
    cosine = {"schedule": "cosine", "warmup": 0, "lr": 0.1}
    done = run(experiment(data, optim=cosine), tmp_path).models["simclr"].parents[1]
    run(experiment(data, steps=8, optim=cosine, extend=done), tmp_path)
    said = " ".join(capsys.readouterr().err.split())
    assert "goes on at step 4 of 8; its learning rate ended at 0.0146 and is now 0.05" in said


def test_a_folder_that_was_moved_is_the_same_training(data, short, tmp_path):
    moved = tmp_path / "elsewhere"
    moved.symlink_to(short)
    configs = [experiment(data, steps=6, extend=place) for place in (short, moved)]
    planned = [dry_run(config, short.parents[1]) for config in configs]
    assert [p.stage.digest for p in planned[0]] == [p.stage.digest for p in planned[1]]


def test_weights_that_were_moved_are_the_same_start(data, short, tmp_path):
    places = [tmp_path / name for name in ("here", "there")]
    for place in places:
        shutil.copytree(short / "s0" / "model", place)
    started = [{"teacher": {"encoder": NETWORK | {"weights": str(place)}}} for place in places]
    done = run(experiment(data, **started[0]), tmp_path / "runs").models["simclr"].parents[1]
    report = run(experiment(data, steps=6, extend=done, **started[1]), tmp_path / "runs")
    assert report.models["simclr"].parents[1] != done


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 4}, "has taken 4 steps already; set more than that"),
        ({"steps": 9, "kind": "byol"}, "was trained with another method.kind"),
        ({"steps": 9, "optim": CONSTANT | {"lr": 0.5}}, "was trained with another method.optim.lr"),
        ({"steps": 9, "seeds": [0, 3]}, "no finished training of seed 3"),
        ({"steps": 9, "extend": "runs/stages/pretrain-0"}, "pretrain.extend: runs/stages/pretr"),
    ],
)
def test_what_cannot_be_extended_is_refused_before_training(data, short, tmp_path, changes, said):
    options = {"extend": short} | changes
    with pytest.raises(UserError) as refused:
        run(experiment(data, **options), tmp_path)
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert not list(tmp_path.glob("stages/*"))


def test_without_a_checkpoint_weights_are_the_remedy(data, short, tmp_path):
    done = run(experiment(data, keep_checkpoints=False), tmp_path).models["simclr"].parents[1]
    assert done.name == short.name  # what is kept is no part of the hash
    with pytest.raises(UserError, match=r"has no last_checkpoint\.pt, which keep_checkpoints=true"):
        run(experiment(data, steps=6, extend=done), tmp_path)


def test_what_extends_nothing_has_the_hash_it_had():
    assert "extend" not in TrainSettings(steps=1).model_dump()
    assert extension(TrainSettings(steps=1), "pretrain") == {}
