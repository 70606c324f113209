import copy
import gc
import warnings

import torch

from ssdistill.artifacts.runtimes import onnx_cache as lent
from ssdistill.artifacts.runtimes.onnx_cache import float_onnx


def counted(monkeypatch):
    """How often something is exported from here on."""
    exports, export = [], lent.export_onnx

    def count(model, path):
        exports.append(path)
        return export(model, path)

    monkeypatch.setattr(lent, "export_onnx", count)
    return exports


def test_equal_weights_are_exported_once_and_others_again(make_encoder, monkeypatch):
    exports = counted(monkeypatch)
    encoder = make_encoder(7).eval()
    x_BCHW = encoder.example(3)
    for model in (encoder, copy.deepcopy(encoder), encoder):
        with float_onnx(model) as written, torch.no_grad():
            found_BD = written(x_BCHW).embedding_BD
            assert torch.allclose(found_BD, encoder(x_BCHW).embedding_BD, atol=1e-4)
    assert len(exports) == 1
    changed = copy.deepcopy(encoder)
    with torch.no_grad():
        changed.net.layer2[0].conv1.weight[0] += 1
    with float_onnx(changed) as written, torch.no_grad():
        found_BD = written(x_BCHW).embedding_BD
        assert torch.allclose(found_BD, changed(x_BCHW).embedding_BD, atol=1e-4)
    assert len(exports) == 2


def test_only_so_many_files_are_kept(make_encoder, monkeypatch):
    monkeypatch.setattr(lent, "MOST", 1)
    monkeypatch.setattr(lent, "_caches", [])
    exports = counted(monkeypatch)
    for seed in (0, 1, 0):
        with float_onnx(make_encoder(seed).eval()):
            pass
    assert len(exports) == 3
    assert sum(path.exists() for path in set(exports)) == 1


def test_the_folder_goes_without_a_warning_when_nobody_needs_it(make_encoder, monkeypatch):
    monkeypatch.setattr(lent, "_caches", [])
    exports = counted(monkeypatch)
    with float_onnx(make_encoder(0).eval()):
        pass
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        lent._caches.clear()
        gc.collect()
    assert not exports[0].parent.exists()
    assert not [w for w in said if issubclass(w.category, ResourceWarning)]
