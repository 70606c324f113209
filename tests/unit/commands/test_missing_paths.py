"""A file or folder that is not there is told in one wording, whatever command it was named to."""

import pytest

import ssdistill
from ssdistill.commands.main import main
from ssdistill.errors import NO_FILE, UserError, no_file, system_reason
from ssdistill.measure.pareto import load_front
from ssdistill.record.run_record import load_run

GONE = "/nowhere/gone"
CHECK = ["data", "check"]
DRY = ["run", "quickstart", "--dry-run"]
COMMANDS = [
    ["run", GONE],
    ["run", f"{GONE}.yaml"],
    ["reproduce", GONE],
    ["benchmark", GONE],
    ["restore", GONE],
    ["report", "--root", GONE],
    ["probe", GONE, "--data", "digits"],
    ["probe", f"{GONE}.onnx", "--data", "digits"],
    ["probe", f"timm:resnet18@{GONE}", "--data", "digits"],
    ["probe", f"checkpoint:resnet18@{GONE}", "--data", "digits"],
    ["data", "pack", GONE, "--to", "shards"],
    ["data", "pack", "kind=folder", f"path={GONE}", "--to", "shards"],
    [*CHECK, GONE],
    [*CHECK, f"{GONE}.yaml"],
    [*CHECK, f"{GONE}.npz"],
    [*CHECK, "kind=list", "path=list.csv", f"root={GONE}"],
    *(
        [*CHECK, f"kind={kind}", f"path={GONE}"]
        for kind in ("folder", "npz", "npy", "tar", "list", "parquet", "arrow", "hdf5", "lmdb")
    ),
    [*CHECK, "kind=tar", f"path={GONE}/*.tar"],
    [*CHECK, "kind=parquet", f"path={GONE}/*.parquet"],
    [*DRY, f"teacher={{kind: run, path: {GONE}}}"],
    [*DRY, f"teacher={{kind: checkpoint, path: {GONE}}}"],
    [*DRY, f"teacher={{kind: timm, name: resnet18, weights: {GONE}}}"],
    [*DRY, f"teacher={{kind: torchvision, name: resnet18, weights: {GONE}}}"],
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_path_that_is_not_there_is_one_line_with_a_remedy(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.csv").write_text("path\na.png\n")
    assert main(words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    before, said, remedy = error.partition(f": {NO_FILE}; ")
    assert said and remedy and before.startswith("error: ")
    assert GONE in before and error.count(GONE) == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda path: ssdistill.load(path),
        lambda path: ssdistill.run(path),
        lambda path: ssdistill.reproduce(path),
        lambda path: ssdistill.probe(path, data="digits"),
        lambda path: load_run(path),
        lambda path: load_front(path),
    ],
    ids=["load", "run", "reproduce", "probe", "load_run", "load_front"],
)
def test_functions_say_it_as_commands_do(call, tmp_path):
    with pytest.raises(UserError, match=rf"^{tmp_path}/gone[^:]*: {NO_FILE}; \w+"):
        call(tmp_path / "gone")


def test_a_folder_in_place_of_a_file_is_no_missing_one(tmp_path, capsys):
    for words in (
        ["run", str(tmp_path)],
        [*DRY, f"teacher={{kind: timm, name: resnet18, weights: {tmp_path}}}"],
        [*DRY, f"teacher={{kind: checkpoint, path: {tmp_path}}}"],
    ):
        assert main(words) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"{tmp_path}: is a folder; name a" in error and NO_FILE not in error


def test_what_the_system_says_of_a_missing_file_is_said_as_we_do():
    with pytest.raises(FileNotFoundError) as raised, open(GONE):
        pass
    assert system_reason(raised.value) == NO_FILE
    assert system_reason(PermissionError(13, "Permission denied")) == "Permission denied"
    assert system_reason(ValueError("no zip")) == "no zip"
    assert no_file("a", "do", " (b)") == "a: no such file or folder (b); do"
