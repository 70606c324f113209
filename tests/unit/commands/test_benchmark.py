import json
from pathlib import Path

import pytest

from ssdistill.chain import benchmark as module
from ssdistill.commands.benchmark_results import lines_of, results, table
from ssdistill.commands.main import main
from ssdistill.experiment.reading import load_experiment
from ssdistill.measure.timing import Format, Timing

TINY = """
schema: 1
name: tiny
data: digits
teacher: {encoder: {name: resnet10t, args: {layers: [1, 1, 1, 0], channels: [4, 4, 8, 8]}}}
student: {encoder: {name: resnet10t, args: {layers: [1, 1, 1, 0], channels: [4, 4, 4, 4]}}}
pretrain: {kind: simclr, steps: 3, batch_size: 8}
distill: {steps: 2, batch_size: 8, losses: {feature: {kind: simreg}}}
device: {precision: fp32, memory_format: contiguous, threads: 1}
"""
PARTS = ["loader", "views", "teacher", "forward, backward", "optimizer"]


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return str(path)


def test_both_trainings_are_timed_and_nothing_stays(config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    file = tmp_path / "found.json"
    words = ["--steps", "1", "--rounds", "1", "--json", str(file)]
    assert main(["benchmark", config, "device.memory_format=channels_last", *words]) == 0
    captured = capsys.readouterr()
    assert "internal" not in captured.err and "distilled: 6 turns" in captured.err
    lines = captured.out.splitlines()
    assert max(map(len, lines)) <= 80 and lines[0].split() == ["training", "what", "fp32", "chosen"]
    assert "distilled: feature, resnet10t to resnet10t, batch 8" in captured.out
    found = json.loads(file.read_text())
    assert found["overrides"] == ["device.memory_format=channels_last"]
    assert list(found["trainings"]) == ["teacher", "distilled"]
    for role, parts in (("teacher", [p for p in PARTS if p != "teacher"]), ("distilled", PARTS)):
        (only,) = found["trainings"][role]["formats"].values()
        assert found["trainings"][role]["chosen"] == "fp32 channels_last"
        assert list(only["seconds"]) == parts
        whole, alone = only["training"]["median"], only["networks_alone"]["median"]
        assert only["fraction"]["median"] == pytest.approx(whole / alone)
        # A step takes as long as its batch at that rate; parts that overlap are no longer.
        assert 0 < only["seconds"]["forward, backward"]["median"] < 20 * 8 / alone
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.json", "tiny.yaml"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "--steps 0: expected a number from 1"),
        (["--rounds", "-1"], "--rounds -1: expected a number from 1"),
        (["other"], "tiny.yaml, other); name one"),
        (["--json", "tiny.yaml/x.json"], "--json tiny.yaml/x.json: cannot be written"),
        (["distill.steps=no"], "distill.steps"),
        (["device.accelerator=abacus"], "abacus"),
        (["--only", "distiled"], "--only distiled: unknown training"),
        (["pretrain.kind=byol", "--against", "lightly"], "got pretrain.kind=byol"),
    ],
)
def test_wrong_inputs_are_one_line(words, message, config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["benchmark", config, *words]) == 2
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert captured.out == "" and message in captured.err and "internal" not in line


def test_a_config_that_trains_nothing_is_refused(config, tmp_path, monkeypatch):
    experiment, _ = load_experiment(config, [])
    monkeypatch.setattr(module, "models_of", lambda workspace, seed: {})
    with pytest.raises(module.UserError, match="trains nothing"):
        module.benchmark(experiment, tmp_path, steps=1, rounds=1)


def timing(*formats: Format, in_use: Format, lightly: bool = False) -> Timing:
    """A training of 12345 images/s, the later formats the faster ones."""
    values: dict = {}
    for number, number_format in enumerate(formats, start=1):
        rates = [{"images_per_second": 12345.0 * number}, {"images_per_second": 13333.0 * number}]
        values[f"whole, {number_format}"] = rates
        values[f"alone, {number_format}"] = [dict.fromkeys(r, 15000.0 * number) for r in rates]
        values[f"parts, {number_format}"] = [dict.fromkeys(PARTS, 1.2345)] * 2
    if lightly:
        values["lightly"] = [{"images_per_second": 5000.0}] * 2
    steps = {"fp32 contiguous": 0.1, "bf16 channels_last": 0.05}
    return Timing("distilled", "simreg", in_use, list(formats), steps, values, ["a notice"])


FP32, BF16 = Format("fp32", "channels_last"), Format("bf16", "channels_last")
COMPILED = Format("bf16", "channels_last", compiled=True)


def test_the_table_fits_80_columns_with_large_numbers(capsys, monkeypatch):
    from ssdistill.terminal.console import show

    monkeypatch.setenv("COLUMNS", "80")
    found = timing(FP32, BF16, COMPILED, in_use=BF16, lightly=True)
    shown = table([found], 10)
    show(shown.to_rich())
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    # In one piece: the headings are there once.
    assert sum("fp32" in line and "chosen" in line for line in lines) == 1
    assert ("distilled", "number format", "channels_last", str(COMPILED)) in shown.rows
    cells = {row[1]: row[2:] for row in shown.rows}
    assert cells["training"] == ("12839 (12345 to 13333)", "38517 (37035 to 39999)")
    assert cells["training / lightly"] == ("2.57 (2.47 to 2.67)", "7.70 (7.41 to 8.00)")
    assert cells["teacher (ms)"] == ("1234.5 (1234.5 to 1234.5)",) * 2
    assert cells["lightly's loop"] == ("5000 (5000 to 5000)", "–")
    assert lines_of(found)[1:] == [
        "distilled: shortest step in ms: fp32 contiguous 100.0, bf16 channels_last 50.0",
        "distilled: a notice",
    ]


def test_what_a_config_fixes_is_chosen_even_if_fp32_is_faster():
    found = timing(BF16, FP32, in_use=BF16)
    assert found.chosen == BF16
    assert timing(FP32, in_use=FP32).chosen == FP32
    assert ("distilled", "training", "12839 (12345 to 13333)", "–") in table(
        [timing(FP32, in_use=FP32)], 1
    ).rows
    slower = timing(FP32, COMPILED, BF16, in_use=BF16)
    assert slower.chosen == BF16 and "distilled: compiled, it is no faster" in lines_of(slower)
    content = results([found])["trainings"]["distilled"]
    assert content["chosen"] == "bf16 channels_last" and set(content["formats"]) == {
        "bf16 channels_last",
        "fp32 channels_last",
    }
    assert "lightly" not in content


def test_formats_that_differ_are_compared(config, tmp_path):
    experiment, _ = load_experiment(config, ["device.precision=bf16"])
    calls: list = []
    (found,) = module.benchmark(
        experiment, Path(tmp_path), steps=1, rounds=1, against_lightly=True, only="teacher",
        announce=lambda *what: calls.append(what),
    )  # fmt: skip
    assert [str(f) for f in found.formats] == ["fp32 contiguous", "bf16 contiguous"]
    assert found.in_use == Format("bf16", "contiguous") == found.chosen
    assert len(calls) == 14 == calls[0][1] and calls[-1][2:] == ("lightly", 13)
    assert found.rates("lightly")[0] > 0
