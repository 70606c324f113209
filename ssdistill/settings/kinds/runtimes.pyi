# Written by `make stubs`; do not edit.

from typing import Literal, overload

from ssdistill.artifacts.runtimes import Runtime
from ssdistill.settings import Settings
from ssdistill.settings.registry import Registry

class AotInductorSettings(Settings):
    """AOTInductor (compiled for this kind of CPU by its C++ compiler, dynamic batch)."""

    kind: Literal["aot_inductor"] = ...

class ExecutorchSettings(Settings):
    """ExecuTorch with XNNPACK (float32, dynamic batch up to a bound)."""

    kind: Literal["executorch"] = ...
    most: int = ...

class OnnxRuntimeSettings(Settings):
    """ONNX (dynamo export, dynamic batch), run by ONNX Runtime."""

    kind: Literal["onnxruntime"] = ...

class OpenVinoSettings(Settings):
    """OpenVINO's intermediate representation, by way of ONNX."""

    kind: Literal["openvino"] = ...
    weights: Literal["fp32", "fp16"] = ...
    arithmetic: Literal["f32", "bf16"] = ...

class TorchExportSettings(Settings):
    """torch.export (graph of ATen operators, dynamic batch), run by PyTorch."""

    kind: Literal["torch_export"] = ...

AnySettings = (
    AotInductorSettings
    | ExecutorchSettings
    | OnnxRuntimeSettings
    | OpenVinoSettings
    | TorchExportSettings
)

class Kinds(Registry[Runtime]):
    @overload
    def schema(self, kind: Literal["aot_inductor"]) -> type[AotInductorSettings]: ...
    @overload
    def schema(self, kind: Literal["executorch"]) -> type[ExecutorchSettings]: ...
    @overload
    def schema(self, kind: Literal["onnxruntime"]) -> type[OnnxRuntimeSettings]: ...
    @overload
    def schema(self, kind: Literal["openvino"]) -> type[OpenVinoSettings]: ...
    @overload
    def schema(self, kind: Literal["torch_export"]) -> type[TorchExportSettings]: ...
    @overload
    def schema(self, kind: str) -> type[Settings]: ...
