"""``model.json`` may be hostile: every field of it may hold anything."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from torch import nn

from ssdistill.artifacts.artifact import load, load_encoder, save_encoder
from ssdistill.artifacts.build_limit import TooLarge, build_limit
from ssdistill.artifacts.description import read_description
from ssdistill.artifacts.files import sha256_of
from ssdistill.compress.restore import uncompressed_parent
from ssdistill.errors import UserError

GONE = object()
ODD = [GONE, None, "x", -1, 0, 10**12, 10**40, [], {}, 1.5, True, "\0", [[[]]]]
FIELDS = [
    "format", "weights", "sha256", "files", "embed_dim", "runtime", "module", "spec", "projector",
    "widths", "channels", "removed", "coded", "lineage", "spec.name", "spec.args", "spec.stem",
    "spec.stem_stride", "spec.stem_padding", "spec.image_size", "spec.input_size", "spec.mean",
    "spec.std", "spec.library", "projector.sha256", "projector.layers", "projector.layers.0",
    "projector.layers.0.kind", "projector.layers.0.in_dim", "projector.layers.0.out_dim",
    "projector.layers.0.bias", "spec.args.layers", "spec.args.channels", "spec.args.stem_width",
]  # fmt: skip
FINE = {
    "projector": [GONE, None],
    "files": [GONE, None],
    "spec.library": [GONE],
    "lineage": [GONE, None, {}],
    "module": [GONE, None],
    "runtime": [GONE, None],
    "spec.input_size": [GONE, None],
    "weights": [GONE],
    "spec.stem_padding": [GONE, 0],
}
"""Values of :data:`ODD` that a field may have, beside those that are its default."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder, and what its description says with every field that there can be."""
    from ssdistill.models.backbones import EncoderSettings, build_encoder

    args = {"layers": (1, 1, 0, 0), "channels": (4, 4, 4, 4), "stem_type": "deep", "stem_width": 4}
    torch.manual_seed(0)
    encoder = build_encoder(EncoderSettings(name="resnet10t", args=args, stem="native"), 16)
    encoder.projector = nn.Sequential(nn.Linear(4, 3))
    folder = tmp_path_factory.mktemp("saved")
    save_encoder(encoder.eval(), folder)
    description = json.loads((folder / "model.json").read_text())
    spec = {"stem_padding": 1, "input_size": None, "library": "timm", **description["spec"]}
    rest = dict.fromkeys(("files", "module", "runtime")) | {"removed": [], "coded": {}}
    return folder, {"channels": {}, **rest, **description, "spec": spec}


@pytest.fixture
def changed(saved, tmp_path):
    """``changed(field, value)``: a copy of the folder with another value in its description."""

    def change(field, value):
        folder = tmp_path / "model"
        shutil.copytree(saved[0], folder, dirs_exist_ok=True)
        description = json.loads(json.dumps(saved[1]))
        place, keys = description, [int(k) if k.isdigit() else k for k in field.split(".")]
        for key in keys[:-1]:
            place = place[key]
        if value is GONE:
            del place[keys[-1]]
        else:
            place[keys[-1]] = value
        (folder / "model.json").write_text(json.dumps(description))
        return folder

    return change


def refused(folder, opened=load):
    with pytest.raises(UserError) as caught:
        opened(folder)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 700
    return text


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_whatever_kind_is_refused_by_name_or_does_no_harm(field, changed):
    harmless = 0
    for value in ODD:
        folder = changed(field, value)
        try:
            load(folder)
            harmless += 1
            if value in (None, "x", -1, 10**12, 10**40, 1.5, "\0", [[[]]]):
                assert value in FINE.get(field, []), (field, value)
        except UserError as error:
            text = str(error)
            assert "\n" not in text and str(folder) in text, (field, value, text)
            first = field.split(".")[0]
            known = (first, "model.safetensors", "which is not an encoder")
            assert any(word in text for word in known), (field, value, text)
    assert harmless < len(ODD) - 6


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"7", b'"x"', b"\xff\xfe\0binary", b"[" * 100_000, b'{"a":' * 9000,
     b'{"format": 1e999}', b'{"format": NaN}', b"\0" * 99],
)  # fmt: skip
def test_what_is_no_json_of_a_model_is_refused_in_one_line(content, changed):
    folder = changed("embed_dim", 4)
    (folder / "model.json").write_bytes(content)
    assert str(folder / "model.json") in refused(folder)


def test_the_message_says_where_what_and_what_to_do(changed):
    text = refused(changed("spec.image_size", 10**12))
    assert "model.json is invalid (spec.image_size: " in text
    assert "got 1000000000000" in text and text.endswith("or save the model again")
    assert "install the version of ssdistill that wrote it" in refused(changed("format", 2))


def test_a_network_out_of_proportion_to_its_file_is_not_built(changed):
    for field, value, message in (
        ("spec.args.layers", [2**20] * 4, "is too large"),
        ("spec.args.layers", [10**5] * 4, "has more than 10000 layers"),
        ("spec.args.channels", [4000, 4000, 4, 4], "too large for its weights"),
        ("spec.args.stem_width", 6000, "too large for its weights"),
    ):
        assert message in refused(changed(field, value))


def test_the_limit_counts_before_memory_is_taken():
    with pytest.raises(TooLarge), build_limit(10, "it", "save it again"):
        nn.Linear(2**20, 2**20)
    with pytest.raises(TooLarge), build_limit(10, "it", "save it again"):
        nn.ModuleList(nn.Linear(1, 1) for _ in range(30_000))
    with build_limit(10, "it", "save it again"):
        nn.Linear(64, 64)


def test_head_layers_of_absurd_width_take_no_memory(changed):
    folder = changed("projector.layers.0.out_dim", 2**31 - 1)
    assert "projector.safetensors does not match" in refused(folder)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors", "projector.safetensors"])
@pytest.mark.parametrize("how", ["gone", "empty", "half", "folder", "loop", "pipe", "dangling"])
def test_a_file_that_is_none_is_named_in_one_line(name, how, changed):
    folder = changed("embed_dim", 4)
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if how == "empty":
        path.touch()
    elif how == "half":
        path.write_bytes(content[: len(content) // 2])
    elif how == "folder":
        path.mkdir()
    elif how == "loop":
        path.symlink_to(name)
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "dangling":
        path.symlink_to("nowhere")
    assert name in refused(folder)
    assert name in refused(folder, load_encoder)


def test_paths_that_no_system_has_are_refused(tmp_path):
    for path in (tmp_path / ("x" * 300), tmp_path / "a\0b", tmp_path / "gone"):
        refused(path)
    (tmp_path / "loop").symlink_to("loop")
    refused(tmp_path / "loop")


@pytest.mark.skipif(os.name != "posix" or os.getuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(changed):  # pragma: no cover
    folder = changed("embed_dim", 4)
    (folder / "model.json").chmod(0)
    assert "cannot read" in refused(folder)


@pytest.mark.parametrize(
    "lineage",
    [{"parents": 7}, {"parents": {"original": 7}}, {"parents": {"original": {"digest": "../*"}}},
     {"parents": {"original": {"digest": "*" * 8, "seed": 0, "sha256": "0" * 64}}}],
)  # fmt: skip
def test_a_lineage_that_is_none_finds_no_folder(lineage, changed):
    text = refused(changed("lineage", lineage), uncompressed_parent)
    assert "lineage" in text


def test_a_description_of_version_0_1_is_read_as_it_is(saved):
    description = read_description(saved[0])
    assert description.names == {"model.safetensors": description.sha256}
    assert description.for_torch and description.spec.image_size == 16


def test_weights_of_another_kind_of_number_are_refused(saved, changed):
    folder = changed("embed_dim", 4)
    state = safetensors.torch.load_file(folder / "model.safetensors")
    state["conv1.0.weight"] = state["conv1.0.weight"].long()
    content = safetensors.torch.save(state)
    (folder / "model.safetensors").write_bytes(content)
    description = json.loads((folder / "model.json").read_text())
    description["sha256"] = sha256_of({"x": content})
    (folder / "model.json").write_text(json.dumps(description))
    assert "tensor 'conv1.0.weight' is torch.int64 in the file" in refused(folder)


def test_the_command_line_says_it_in_one_line(changed):
    folder = changed("spec.image_size", -1)
    done = subprocess.run(
        [sys.executable, "-m", "ssdistill.commands.main", "probe", str(folder), "--data", "digits"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: the spec in")


@pytest.mark.parametrize("value", [2.0, "much"])
def test_a_network_that_can_be_built_and_not_called_is_refused_on_opening(changed, value):
    with pytest.raises(UserError, match=r"the spec in .* is invalid: .*cannot encode images"):
        load(changed("spec.args.drop_rate", value))


@pytest.mark.parametrize("key", ["a\nb", "\x1b[31mred", "k" * 5000])
def test_what_a_file_calls_its_arguments_stays_on_one_printable_line(changed, key):
    with pytest.raises(UserError) as caught:
        load(changed(f"spec.args.{key}", 1))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(saved, tmp_path, value):
    folder = tmp_path / "model"
    shutil.copytree(saved[0], folder)
    path = folder / "model.safetensors"
    state = safetensors.torch.load_file(path)
    state["bn1.running_var"][0] = value
    safetensors.torch.save_file(state, path)
    description = json.loads((folder / "model.json").read_text())
    description["sha256"] = sha256_of({path.name: path.read_bytes()})
    (folder / "model.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=r"'bn1\.running_var' contains NaN or infinity"):
        load(folder)


@pytest.mark.parametrize("value", [0, 1e-320])
def test_images_are_not_divided_by_nothing(changed, value):
    with pytest.raises(UserError, match=r"spec\.std\.1"):
        load(changed("spec.std", [0.2, value, 0.2]))
