"""Command lines with a wrong value, network, data set, device or option."""

import os
import random
import zipfile
from pathlib import Path

import numpy as np

VALUES = (
    "0", "-1", "1", "1e9", "1e400", ".nan", "null", "true", "x", "''", "[]", "{}", "[1,2]",
    "{a: 1}", "{kind: x}", "[{kind: [1]}]", "999999999999", "0.5", "'${name}'", "[[]]",
)  # fmt: skip
KEYS = (
    "pretrain.steps", "pretrain.epochs", "pretrain.batch_size", "pretrain.optim.lr",
    "pretrain.optim.kind", "pretrain.optim.warmup", "pretrain.optim.weight_decay",
    "pretrain.temperature", "pretrain.projector.output_dim", "pretrain.projector.hidden_dim",
    "pretrain.projector.depth", "pretrain.views", "pretrain.seed", "pretrain.select",
    "pretrain.select_every", "distill.steps", "distill.batch_size", "distill.views",
    "distill.optim.lr", "distill.losses.feature.depth", "distill.losses.feature.weight",
    "distill.losses.feature.kind", "distill.losses.contrastive.queue", "distill.mix.kind",
    "distill.losses.contrastive.temperature", "distill.interpolate.alpha", "distill.mix.alpha",
    "compress.0.ratio", "compress.0.kind", "compress.0.round_to", "compress.0.macs", "compress",
    "plans.a", "compare.a", "compare.a.losses", "teachers.a", "teacher.kind", "student.encoder",
    "student.encoder.name", "student.encoder.args", "student.encoder.stem",
    "student.encoder.stem_stride", "student.encoder.stem_padding", "student.encoder.input_size",
    "teacher.encoder.args.channels", "teacher.encoder.args.layers", "student.encoder.pretrained",
    "evaluate.knn.k", "evaluate.linear", "evaluate.low_shot.draws", "evaluate.label_free_images",
    "evaluate.also.a", "data.path", "data.image_size", "data.kind", "data.max_bad", "data",
    "device.threads", "device.accelerator", "device.precision", "device.memory_format",
    "tracking.log_every", "tracking.wandb", "seeds", "name", "profile", "checkpoint_seconds",
    "control.budgets", "paper.claims", "measure.memory", "schema",
)  # fmt: skip
METHODS = ("byol", "simsiam", "vicreg", "barlow_twins", "nnclr", "moco_v3", "moco", "swav", "dino")
ARGUMENTS = (
    "{in_chans: 1}", "{num_classes: x}", "{img_size: [1]}", "{features_only: true}", "{nope: 1}",
    "{layers: [1000000000, 1, 1, 1]}", "{channels: [0, 0, 0, 0]}", "{channels: [-1, 1, 1, 1]}",
    "{global_pool: ''}", "{act_layer: x}", "{drop_rate: a}", "{output_stride: 7}", "{depth: 1e9}",
    "{checkpoint_path: /etc/passwd}", "{block: x}", "{stem_width: 0}", "{layers: []}",
)  # fmt: skip
COMMANDS = (
    ("run",), ("run", "/tmp"), ("run", "nope"), ("run", "quickstart", "nope"), ("list", "nope"),
    ("run", "quickstart", "--nope"), ("list", "losses", "nope"), ("list", "a", "b", "c"), ("nope",),
    ("probe",), ("probe", "/nope"), ("probe", "/tmp"), ("probe", "timm:nope", "--data", "digits"),
    ("restore", "/nope"), ("restore", "/tmp"), ("report", "--root", "/nope"), (),
    ("reproduce", "quickstart"), ("reproduce", "/dev/null"), ("run", "/dev/null"),
    ("run", "/dev/zero"), ("run", "x\0y"), ("run", "x" * 5000), ("run", ""), ("probe", ""),
    ("run", "quickstart", "--runs", "/dev/null", "--dry-run"), ("list", ""), ("--nope",),
    ("run", "quickstart", "--runs", "/proc/nope", "--dry-run"), ("--debug",),
)  # fmt: skip


def draw(config: Path, folder: Path, rng: random.Random) -> list[str]:
    """A command line, and the files it names written into ``folder``."""
    runs = ["--runs", str(folder / "runs")]
    plan = ["run", str(config), *runs, "--dry-run"]
    way = rng.choice(
        ("value", "value", "value", "value", "two", "network", "batch", "data", "word")
    )
    if way == "value":
        return [*plan, f"{rng.choice(KEYS)}={rng.choice(VALUES)}"]
    if way == "two":
        return [*plan, *(f"{rng.choice(KEYS)}={rng.choice(VALUES)}" for _ in range(2))]
    if way == "network":
        return [*plan, *_network(rng)]
    if way == "batch":
        return [*plan, *_batch(rng)]
    if way == "data":
        return [*plan, *DATA[rng.choice(list(DATA))](folder, rng)]
    return list(rng.choice(COMMANDS))


def _network(rng: random.Random) -> list[str]:
    import timm

    role = rng.choice(("student", "teacher"))
    if rng.random() < 0.5:
        return [f"{role}.encoder.args={rng.choice(ARGUMENTS)}"]
    return [f"{role}.encoder.name={rng.choice([*timm.list_models('*tiny*'), 'nope'])}"]


def _batch(rng: random.Random) -> list[str]:
    from ssdistill.settings.registry import LOSSES

    if rng.random() < 0.5:
        return [f"pretrain.kind={rng.choice(METHODS)}", f"pretrain.batch_size={rng.choice((1, 2))}"]
    kind = rng.choice(list(LOSSES.classes))
    return [f"distill.losses={{a: {{kind: {kind}}}}}", f"distill.batch_size={rng.choice((1, 2))}"]


def _npz(arrays_of, **options):
    def write(folder: Path, rng: random.Random) -> list[str]:
        path = folder / "wrong.npz"
        np.savez(path, **arrays_of())
        return [f"data.path={path}"]

    return write


def _images(n: int = 20, shape: tuple[int, ...] = (16, 16, 3), dtype=np.uint8) -> np.ndarray:
    return np.zeros((n, *shape), dtype)


def _arrays(**changes) -> dict[str, np.ndarray]:
    arrays = {
        "train_images": _images(),
        "train_labels": np.arange(20) % 2,
        "test_images": _images(),
        "test_labels": np.arange(20) % 2,
    }
    arrays |= changes
    return {name: value for name, value in arrays.items() if value is not None}


def _bytes(content: bytes, name: str = "wrong.npz"):
    def write(folder: Path, rng: random.Random) -> list[str]:
        path = folder / name
        path.write_bytes(content)
        return [f"data.path={path}"]

    return write


def _half(folder: Path, rng: random.Random) -> list[str]:
    path = folder / "wrong.npz"
    np.savez(path, **_arrays())
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])
    return [f"data.path={path}"]


def _member(folder: Path, rng: random.Random) -> list[str]:
    path = folder / "wrong.npz"
    with zipfile.ZipFile(path, "w") as file:
        for name in _arrays():
            file.writestr(f"{name}.npy", rng.randbytes(rng.randrange(200)))
    return [f"data.path={path}"]


def _folder(folder: Path, rng: random.Random) -> list[str]:
    """A folder with some images in it, and something that is none."""
    from PIL import Image

    place = folder / "images"
    place.mkdir()
    for number in range(rng.choice((0, 1, 12))):
        Image.new("RGB", (20, 20), (number * 9, 0, 0)).save(place / f"{number}.png")
    odd = place / rng.choice(("x.png", "x.jpg", "x.gif", "x", "x.webp"))
    kind = rng.choice(("pipe", "empty", "text", "folder", "loop", "half"))
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "folder":
        odd.mkdir()
    elif kind == "loop":
        odd.symlink_to(odd)
    elif kind == "half":
        Image.new("RGB", (64, 64)).save(place / "whole.png")
        odd.write_bytes((place / "whole.png").read_bytes()[:60])
    else:
        odd.write_bytes(b"" if kind == "empty" else b"text\n")
    return [f"data={{kind: folder, path: {place}, image_size: 16}}"]


DATA = {
    "objects": _npz(lambda: _arrays(train_labels=np.array([{}] * 20, object))),
    "text labels": _npz(lambda: _arrays(train_labels=np.array(["a", "b"] * 10))),
    "label matrix": _npz(lambda: _arrays(train_labels=np.zeros((20, 14), int))),
    "labels of -1": _npz(lambda: _arrays(train_labels=np.full(20, -1))),
    "one class": _npz(lambda: _arrays(train_labels=np.zeros(20, int))),
    "few labels": _npz(lambda: _arrays(train_labels=np.zeros(3, int))),
    "float images": _npz(lambda: _arrays(train_images=_images(dtype=np.float32))),
    "no images": _npz(lambda: _arrays(train_images=_images(0))),
    "one image": _npz(lambda: _arrays(train_images=_images(1), train_labels=np.zeros(1, int))),
    "no train": _npz(lambda: _arrays(train_images=None)),
    "no test": _npz(lambda: _arrays(test_images=None)),
    "flat images": _npz(lambda: _arrays(train_images=_images(shape=(16,)))),
    "five channels": _npz(lambda: _arrays(train_images=_images(shape=(16, 16, 5)))),
    "tiny images": _npz(lambda: _arrays(train_images=_images(shape=(1, 1, 3)))),
    "empty file": _bytes(b""),
    "text": _bytes(b"hello\n"),
    "empty zip": _bytes(b"PK\x05\x06" + b"\0" * 18),
    "half": _half,
    "broken members": _member,
    "missing": lambda folder, rng: [f"data.path={folder / 'nope.npz'}"],
    "directory": lambda folder, rng: [f"data.path={folder}"],
    "folder": _folder,
}
