"""Errors of many kinds: status 2, one problem a line, nothing said twice, no word of a library."""

import re

import numpy as np
import pytest

from ssdistill.commands.main import main

FILES = {
    "bracket.yaml": "a: [1\n",
    "colon.yaml": "name: x: y\n",
    "tab.yaml": "a:\n\tb: 1\n",
    "twice.yaml": "name: a\nname: b\n",
    "list.yaml": "- a\n",
    "empty.yaml": "",
    "bytes.yaml": b"\xff\xfe\x00x",
    "itself.yaml": "extends: itself.yaml\n",
    "tag.yaml": "a: !!python/object:os.system x\n",
    "alias.yaml": "a: *b\n",
    "junk.npz": b"junk",
    "list.csv": "path,label\nabsent.png,1\n",
    "junk.onnx": b"x",
    "junk.pth": b"x",
    "model/model.json": "{",
    "photos/a.txt": "x",
    "a-file": "x",
}
IN_CONFIG = """\
nothing | =3 | a..b=3 | data=[1 | name= | name=' | pretrain.steps=${oc.env:NOT_SET_HERE}
pretrain.steps=${nope.x} | seeds=[0,0] | compress.9.ratio=1 | distill.losses.feature.kind=nope
student.encoder.name=resnet1888 | student.encoder.args.foo=1 | data.image_size=9999
student.encoder.args.pretrained=true | data.kind=folder | data.kind=folder data.path=photos
data.kind=folder data.path=a-file | data.kind=npz data.path=junk.npz | data.path=x
data.kind=npz data.path=single.npy | data.kind=list data.path=list.csv | device.precision=fp8
control.budgets=[foo] | evaluate.knn.distance=foo | pretrain.batch_size=100000
teacher={kind:\N{NO-BREAK SPACE}run,\N{NO-BREAK SPACE}path:\N{NO-BREAK SPACE}model}
teacher.kind=timm | compress=[{kind:\N{NO-BREAK SPACE}prune}] | sweep.search=grid | student=null
pretrain.epochs=2 | pretrain.optim.lr=1e-3x | data.window=[3,1] | data.channels=[0,0]
data.display=[0,1,2] | tracking.wandb=foo | --runs a-file | compare.teacher.distill.steps=3
"""
OTHERS = """\
reproduce quickstart | run quickstart --publish a-file/x | probe | probe timm:resnet18
probe model --data digits | probe junk.onnx --data digits | probe timm:nope --data digits
probe photos --data digits | probe checkpoint:resnet18@junk.pth --data digits | restore model
probe a-file --data digits | probe timm:resnet18 --data photos | report | list x | list losses x
data check | data check a b | data check digits kind=npz | data check digits --out photos
data pack digits --to photos | data pack digits --to s --quality 3 | benchmark a b
benchmark quickstart --only x | run a-file | run photos
"""


def words_of(text):
    lines = [line.strip() for part in text.splitlines() for line in part.split("|")]
    return [[word.replace("\N{NO-BREAK SPACE}", " ") for word in line.split(" ")] for line in lines]


COMMANDS = [
    *(["run", name] for name in FILES if name.endswith(".yaml")),
    *(["run", "quickstart", *words, "--dry-run"] for words in words_of(IN_CONFIG)),
    *words_of(OTHERS),
]
FOREIGN = re.compile(
    r"Traceback|\w+Error\b|object at 0x|<class|NoneType|internal error|__init__|validation"
    r"|[Ii]nput should|opcode|usage:"
)
REMEDY = re.compile(r"; ['a-z`]|: (use|set) |: required|: expected|: \[low|is unknown|at most")
"""What to do, or what may stand in place of a value."""


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        content = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(content)
    np.save("single.npy", np.zeros(3))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_an_error_says_what_is_wrong_and_what_to_do(words, files, capsys):
    try:
        status = main(words)
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    _, _, text = capsys.readouterr().err.partition("error: ")
    first, *problems = text.splitlines()
    count = re.search(r": (\d+) problems?$", first)
    assert len(problems) == (int(count[1]) if count else 0)
    for line in problems or [first]:
        line = line.strip()
        assert not FOREIGN.search(line), line
        assert REMEDY.search(line), line
        assert not re.search(r"\b([a-z]{3,}) \1\b", line), line
        key, _, reason = line.partition(": ")
        assert not reason.startswith((f"{key}:", f"{key.rpartition('.')[2]}: ")), line
        for name in FILES:
            assert len(re.findall(rf"\b{re.escape(name)}\b", line)) <= 1, line
