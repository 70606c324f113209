"""Arguments and names that would make timm, torchvision or the hub open a file or address."""

import hashlib
import json
import os
import shutil

import pytest
import timm
import torch

from ssdistill.artifacts.artifact import load, save_encoder
from ssdistill.errors import UserError
from ssdistill.evaluate.opening.encoders import open_encoder
from ssdistill.experiment.reading import load_experiment
from ssdistill.models.allowed_args import loading_argument, loading_arguments, refused_argument
from ssdistill.models.spec import EncoderSettings
from ssdistill.settings.registry import TEACHERS
from ssdistill.teachers import ImageSpec
from ssdistill.teachers.timm_model import TimmModel

IMAGE_SPEC = ImageSpec(32, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def artifact(make_encoder, tmp_path):
    """``artifact(**args)``: a saved encoder whose description has these arguments too."""
    save_encoder(make_encoder(0).eval(), tmp_path / "saved")
    torch.save({"e": Evil(tmp_path / "ran")}, tmp_path / "readme.txt")

    def change(spec=None, **args):
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "saved", folder)
        description = json.loads((folder / "model.json").read_text())
        description["spec"]["args"] |= args
        description["spec"] |= spec or {}
        (folder / "model.json").write_text(json.dumps(description))
        return folder

    return change


def refused(folder):
    with pytest.raises(UserError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", sorted(loading_arguments()))
def test_a_file_does_not_say_what_is_loaded(name, artifact, tmp_path, monkeypatch):
    """As timm up to 1.0.20 does, what it is told to load is unpickled."""
    read = timm.models._helpers.load_state_dict
    for module in (timm.models._helpers, timm.models._builder):
        monkeypatch.setattr(module, "load_state_dict", lambda path: read(path, weights_only=False))
    path = str(tmp_path / "readme.txt")
    for value in (path, {"file": path, "source": None}, True, [path]):
        assert f"spec.args.{name}: a file may not choose which weights are loaded" in refused(
            artifact(**{name: value})
        )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "value",
    ["/etc/passwd", "../x", "a.b", "hf-hub:x/y", "https://x", "C:\\x", "os.system", "lambda: 0",
     "x" * 65, "a b", "ä", "\0", {"a": "/x"}, [["/x"]], [[[[[1]]]]], [1] * 5000, 10**12, -(10**12),
     1e300],
)  # fmt: skip
def test_values_are_numbers_and_plain_names(value, artifact):
    assert "spec.args.layers" in refused(artifact(layers=value))
    assert "spec.args.stem_type" in refused(artifact(stem_type=value))


@pytest.mark.parametrize(
    "name", ["lyers", "device", "dtype", "kwargs", "args", "round_chs_fn", "path", "__init__", ""]
)
def test_other_arguments_than_those_of_the_network_are_refused(name, artifact):
    assert f"spec.args.{name}" in refused(artifact(**{name: 1}))


@pytest.mark.parametrize(
    "name",
    ["hf-hub:timm/resnet18", "hf_hub:timm/resnet18", "local-dir:/tmp/x", "local-dir:.", "../x",
     "/etc/passwd", "timm/resnet18", "os.system", "resnet10t\n", "", "x" * 500],
)  # fmt: skip
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_names_are_those_of_networks(name, library, artifact, monkeypatch):
    monkeypatch.setattr(timm.models._hub, "hf_hub_download", lambda *a, **k: pytest.fail("asked"))
    assert "spec" in refused(artifact({"name": name, "library": library}))


def test_what_networks_are_built_from_is_allowed():
    for name, library, args in (
        ("resnet10t", "timm", {"layers": (1, 1), "stem_type": "deep", "zero_init_last": False}),
        ("vit_tiny_patch16_224", "timm", {"depth": 2, "num_heads": 4, "init_values": 1e-5}),
        ("vit_small_patch14_dinov2.lvd142m", "timm", {"img_size": [112, 112]}),
        ("mobilenetv3_small_100", "timm", {"bn_eps": 1e-3, "act_layer": "relu"}),
        ("convnext_atto", "timm", {"dims": [8, 16], "drop_path_rate": 0.1}),
        ("swin_tiny_patch4_window7_224", "timm", {"window_size": 4, "global_pool": ""}),
        ("vit_b_16", "torchvision", {"image_size": 64}),
    ):
        assert refused_argument(name, library, args) is None, name


def test_every_argument_that_loads_in_the_installed_timm_is_known():
    known = {"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"}
    assert known | {"cache_dir", "file", "url"} <= loading_arguments()
    assert loading_argument({"depth": 1}) is None and loading_argument({"url": 1}) == "url"


@pytest.mark.parametrize("name", ["checkpoint_path", "pretrained_cfg_overlay", "cache_dir"])
def test_a_config_names_weights_by_the_keys_that_count_in_digests(name, tmp_path):
    value = {"file": str(tmp_path)} if name.endswith("overlay") else str(tmp_path)
    with pytest.raises(ValueError, match=f"'{name}' selects which weights to load"):
        EncoderSettings(args={name: value})
    with pytest.raises(ValueError, match=f"'{name}' selects which weights to load"):
        TEACHERS.schema("timm").model_validate({"kind": "timm", "name": "x", "args": {name: value}})
    with pytest.raises(UserError, match=rf"teacher\.args\.{name} .*set teacher\.weights=FILE"):
        TimmModel(name="resnet18", args={name: value})
    text = json.dumps({name: value}).replace('"', "")
    for key in ("student.encoder.args", "teacher.encoder.args"):
        with pytest.raises(UserError) as caught:
            load_experiment("quickstart", [f"{key}={text}"])
        assert key in str(caught.value) and "teacher.weights=FILE" in str(caught.value)


def test_two_files_of_one_name_have_two_identities(tmp_path):
    paths = [tmp_path / "a.pth", tmp_path / "b.pth"]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]))
    for kind in ("timm", "torchvision"):
        found = [TEACHERS.build(TEACHERS.schema(kind)(kind=kind, name="resnet18", weights=str(p)))
                 .identity() for p in paths]  # fmt: skip
        expected = [{"sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in paths]
        assert found == expected


@pytest.mark.parametrize(
    "extra",
    [{"model_args": {"checkpoint_path": "/x"}}, {"model_args": {"stem_type": "/x"}},
     {"architecture": "local-dir:/x"}],
)  # fmt: skip
def test_a_description_on_the_hub_is_no_better_than_one_in_a_file(extra, tmp_path, monkeypatch):
    config = {"architecture": "resnet10t", "pretrained_cfg": {"input_size": [3, 32, 32]}} | extra
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("ssdistill.models.downloads._hub_answers", lambda: True)
    monkeypatch.setattr(
        timm.models._hub, "hf_hub_download", lambda repo_id, filename, **_: tmp_path / filename
    )
    with pytest.raises(UserError, match=r"teacher\.name: .*'hf-hub:someone/x'"):
        TimmModel(name="hf-hub:someone/x").load(IMAGE_SPEC)


def test_a_description_on_the_hub_names_no_other_place(tmp_path, monkeypatch):
    torch.save({"e": Evil(tmp_path / "ran")}, tmp_path / "evil.pth")
    places = {"file": str(tmp_path / "evil.pth"), "url": "http://x", "state_dict": {"a": 1}}
    config = {"architecture": "resnet10t", "pretrained_cfg": {"input_size": [3, 32, 32], **places}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("ssdistill.models.downloads._hub_answers", lambda: True)
    monkeypatch.setattr(
        timm.models._hub, "hf_hub_download", lambda repo_id, filename, **_: tmp_path / filename
    )
    _, _, _, source = TimmModel(name="hf-hub:someone/x")._resolve()
    assert not places.keys() & source["pretrained_cfg"].keys()


@pytest.mark.parametrize("name", ["timm:local-dir:/tmp", "timm:../x", "torchvision:/etc/passwd"])
def test_short_names_are_those_of_networks_too(name):
    with pytest.raises(UserError):
        open_encoder(name)
