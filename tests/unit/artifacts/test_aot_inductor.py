import json
import shutil
import zipfile

import pytest
import torch

from ssdistill.artifacts.artifact import load, save_encoder
from ssdistill.artifacts.runtimes import compiled_here
from ssdistill.artifacts.runtimes.aot_inductor import CompiledModel
from ssdistill.artifacts.runtimes.compiled_here import trust_stages
from ssdistill.compress.export import Uint8Encoder
from ssdistill.errors import UserError
from ssdistill.measure.memory import peak_memory
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.settings.registry import RUNTIMES

SMALL = {"layers": (1, 1, 0, 0), "channels": (8, 8, 8, 8), "stem_type": "deep", "stem_width": 8}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Compiling takes tens of seconds: one file for all tests, of uint8 images."""
    runtime = RUNTIMES["aot_inductor"]
    try:
        runtime.require()
    except UserError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    settings = EncoderSettings(name="resnet10t", args=SMALL, stem_stride=2)
    source = Uint8Encoder(build_encoder(settings, 16).eval(), 24)
    path = tmp_path_factory.mktemp("aoti") / runtime.file
    runtime().write(source, path)
    return path, source


def with_facts(path, target, **facts):
    """A copy that says it was compiled for something else."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("_metadata.json"):
                content = json.dumps(json.loads(content) | facts)
            new.writestr(name, content)
    return target


@torch.no_grad()
def test_it_takes_uint8_pictures_of_another_size_in_any_number(compiled):
    path, source = compiled
    found = CompiledModel(path, 8)
    assert found.input_dtype == "uint8" and found.input_shape == (3, 24, 24)
    for batch in (1, 5):
        images_BCHW = source.example(batch)
        expected_BD = source(images_BCHW).embedding_BD
        assert torch.allclose(found(images_BCHW).embedding_BD, expected_BD, atol=1e-4)


def test_it_has_neither_sources_nor_their_places(compiled):
    with zipfile.ZipFile(compiled[0]) as archive:
        names = archive.namelist()
        sources = [name for name in names if name.endswith((".cpp", ".h", ".o"))]
        assert b"".join(archive.read(name) for name in sources) == b""
    assert len([name for name in names if name.endswith(".so")]) == 1


def test_a_file_for_another_processor_is_refused_before_it_is_run(compiled, tmp_path, monkeypatch):
    path, _ = compiled
    foreign = with_facts(path, tmp_path / "foreign.pt2", AOTI_MACHINE="riscv64")
    with pytest.raises(UserError, match=r"foreign.pt2 was compiled for riscv64"):
        CompiledModel(foreign, 8)
    wide = with_facts(path, tmp_path / "wide.pt2", AOTI_CPU_ISA="AVX512")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    with pytest.raises(UserError, match=r"compiled for .* AVX512, but this machine is .* AVX2"):
        CompiledModel(wide, 8)


def test_what_was_compiled_here_opens_and_from_elsewhere_only_with_trust(
    compiled, tmp_path, monkeypatch
):
    path, source = compiled
    save_encoder(CompiledModel(path, 8, source.spec), tmp_path / "model")
    images_BCHW = source.example(2)
    with torch.no_grad():
        expected_BD = source(images_BCHW).embedding_BD
    # As in a later process of the same installation.
    monkeypatch.setattr(compiled_here, "_this_process", set())
    for given in (images_BCHW, images_BCHW.float() / 255):
        found_BD = load(tmp_path / "model")(given).embedding_BD
        assert torch.allclose(found_BD, expected_BD, atol=1e-3)
    memory = peak_memory(tmp_path / "model", inputs=images_BCHW[:1])
    assert memory is None or memory.running > 0
    # And on another machine.
    monkeypatch.setenv(compiled_here.STATE, str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match=r"native code .*trust=True \(--trust\)"):
        load(tmp_path / "model")
    found_BD = load(tmp_path / "model", trust=True)(images_BCHW).embedding_BD
    assert torch.allclose(found_BD, expected_BD, atol=1e-4)
    assert trust_stages(tmp_path) == []
    stage = tmp_path / "runs" / "stages" / "compress-01234567" / "s0"
    shutil.copytree(tmp_path / "model", stage / "model")
    assert trust_stages(tmp_path / "runs") == [stage / "model" / "model.aoti.pt2"]
    assert load(stage).spec.name == source.spec.name


def test_a_zip_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as archive:
        archive.writestr("model/version", "1")
    with pytest.raises(UserError, match="not an AOTInductor package for a CPU"):
        CompiledModel(tmp_path / "other.pt2", 8)


def test_writing_without_a_compiler_is_refused():
    from torch._inductor import config

    # What monkeypatch undoes is gone from inductor's settings ever after.
    with (
        config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(UserError, match=r"aot_inductor requires a C\+\+ compiler"),
    ):
        RUNTIMES["aot_inductor"].require()
