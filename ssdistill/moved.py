"""Old names of modules: what version 0.1 called otherwise is imported from where it is now.

Nothing in the package imports by an old name. The table may go with version 1.0.
"""

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

PACKAGE = "ssdistill"
MOVED = {
    "chain.damage": "chain.saliency",
    "chain.pictures": "chain.page_content",
    "cli": "commands.main",
    "compress.budget": "compress.comparing",
    "compress.fitting.observe": "compress.fitting.observing",
    "compress.given": "compress.preconditions",
    "compress.int8.slim": "compress.int8.initializers",
    "compress.keeping": "compress.bisection",
    "compress.searching.meet": "compress.searching.measured_budget",
    "compress.searching.plan_costs": "compress.searching.allocation_costs",
    "config": "experiment.reading",
    "config_errors": "settings.problems",
    "data.colour": "data.color",
    "data.file_sets": "data.sources.file_sets",
    "data.folder": "data.sources.folder",
    "data.npz": "data.sources.npz",
    "data.torchvision_sets": "data.sources.torchvision_sets",
    "distill.bank": "losses.base.bank",
    "distill.gather": "distributed",
    "distill.neighbours": "distill.neighbors",
    "evaluate.features": "label_free.features",
    "evaluate.gauges": "label_free",
    "evaluate.gauges.agreement": "label_free.agreement",
    "evaluate.gauges.collapse": "label_free.collapse",
    "evaluate.gauges.lidar": "label_free.lidar",
    "evaluate.gauges.selection": "train.selection",
    "evaluate.gauges.watch": "train.watch",
    "evaluate.nearest": "label_free.nearest",
    "evaluate.opening.pictures": "evaluate.opening.images",
    "evaluate.probes.cluster_probe": "evaluate.protocols.cluster",
    "evaluate.probes.linear_probe": "evaluate.protocols.linear",
    "evaluate.probes.low_shot_probe": "evaluate.protocols.low_shot",
    "evaluate.probes.retrieval_probe": "evaluate.protocols.retrieval",
    "evaluate.rows": "label_free.rows",
    "evaluate.vectors": "label_free.vectors",
    "foreign": "teachers.formats",
    "foreign.fitting": "teachers.formats.fitting",
    "foreign.formats": "teachers.formats.layouts",
    "foreign.heads": "teachers.formats.heads",
    "foreign.inert": "teachers.formats.safe_unpickler",
    "foreign.names": "teachers.formats.names",
    "foreign.parts": "teachers.formats.parts",
    "foreign.reading": "teachers.formats.reading",
    "foreign.states": "teachers.formats.states",
    "listing": "commands.listing",
    "losses.contrast": "losses.base.contrast",
    "losses.maps": "losses.base.maps",
    "losses.matching": "losses.base.matching",
    "losses.prototypes": "losses.base.prototypes",
    "losses.relations": "losses.base.relations",
    "losses.similarity": "losses.base.similarity",
    "losses.stage_maps": "losses.base.stage_maps",
    "measure.turns": "measure.interleaved",
    "models.artifact_files": "artifacts.files",
    "models.artifacts": "artifacts.artifact",
    "models.coded_bytes": "artifacts.coding.file",
    "models.coded_file": "artifacts.coding.file",
    "models.coding": "artifacts.coding.codes",
    "models.head_file": "artifacts.heads",
    "models.huffman": "artifacts.coding.huffman",
    "models.packing": "artifacts.coding.packing",
    "models.torchvision_twins": "teachers.torchvision_equivalents",
    "models.weights": "artifacts.weights",
    "probing": "commands.probe",
    "probing.asking": "commands.probe.arguments",
    "probing.command": "commands.probe.command",
    "probing.files": "commands.probe.files",
    "probing.findings": "commands.probe.findings",
    "probing.names": "commands.probe.names",
    "probing.page": "commands.probe.page",
    "probing.projection": "commands.probe.projection",
    "probing.run": "commands.probe.run",
    "probing.tables": "commands.probe.tables",
    "record.all_tables": "report.tables.all_tables",
    "record.axes": "report.charts.axes",
    "record.columns": "report.tables.columns",
    "record.comparisons": "report.charts.comparisons",
    "record.confusion_chart": "report.charts.confusion",
    "record.document": "report.document",
    "record.embedding_map": "report.charts.embedding_map",
    "record.front": "measure.pareto",
    "record.front_chart": "report.charts.pareto",
    "record.grids": "report.charts.grids",
    "record.page": "report.page",
    "record.paired_table": "report.tables.paired",
    "record.plots": "report.charts.plots",
    "record.protocols_table": "report.tables.protocols",
    "record.rankings": "report.tables.rankings",
    "record.reports": "report.readme",
    "record.steps": "report.tables.steps",
    "record.table": "report.tables.table",
    "record.tables": "report.tables.models",
    "record.timing": "report.tables.timing",
    "record.verdict": "report.verdict",
    "registry": "settings.registry",
    "runtimes": "artifacts.runtimes",
    "runtimes.aot_inductor": "artifacts.runtimes.aot_inductor",
    "runtimes.executorch": "artifacts.runtimes.executorch",
    "runtimes.lent": "artifacts.runtimes.onnx_cache",
    "runtimes.onnx_runtime": "artifacts.runtimes.onnx_runtime",
    "runtimes.openvino": "artifacts.runtimes.openvino",
    "runtimes.signal_stack": "artifacts.runtimes.signal_stack",
    "runtimes.torch_export": "artifacts.runtimes.torch_export",
    "runtimes.tracing": "artifacts.runtimes.tracing",
    "sections": "experiment.sections",
    "stages": "chain.stages",
}
"""Old name: new name, both below ``ssdistill``."""
RENAMED = {
    "chain.damage": {"total_losses": "iterate_total_losses"},
    "chain.pictures": {"pictures": "page_content"},
    "chain.plan": {"plan": "plan_stages"},
    "compress.budget": {
        "HALVINGS": "compress.bisection:",
        "Share": "RelativeCost",
        "search": "compress.bisection:bisect_to_budget",
        "share_of": "relative_cost",
    },
    "compress.export": {"Pictures": "Uint8Encoder"},
    "compress.fitting.calls": {
        "ConvArguments": "compress.fitting.arguments:",
        "LinearArguments": "compress.fitting.arguments:",
        "rows_at": "compress.fitting.arguments:",
    },
    "compress.fitting.observe": {"Watched": "ObservedModel"},
    "compress.given": {"check_given": "check_input_model"},
    "compress.int8.slim": {"slim": "merge_equal_initializers"},
    "compress.keeping": {
        "largest_ratio": "bisect_to_cka",
        "likeness_to": "compress.comparing:cka_with",
    },
    "compress.searching.actions": {"Plan": "Allocation", "in_words": "as_json"},
    "compress.searching.meet": {
        "Share": "compress.comparing:RelativeCost",
        "measuring": "measured_cost",
        "within": "allocate_within",
    },
    "compress.searching.plan_costs": {"PlanCosts": "AllocationCosts"},
    "config": {"validated": "settings.problems:"},
    "data.extra": {"NEEDS_NEIGHBOURS": "NEIGHBOR_VIEWS"},
    "data.geometry": {"resize_centre_crop": "resize_center_crop"},
    "data.mixing": {"centred_box": "centered_box"},
    "data.sources": {
        **dict.fromkeys(
            ("Cifar10", "Cifar100", "FashionMnist", "Stl10", "Svhn"),
            "data.sources.torchvision_sets:",
        ),
        **dict.fromkeys(("Dtd", "Flowers102", "Food101", "Pets"), "data.sources.file_sets:"),
        **dict.fromkeys(("RawSplit", "SPLITS", "Source"), "data.splits:"),
        "ArraySplit": "data.array_split:",
        "Digits": "data.sources.digits:",
        "Folder": "data.sources.folder:",
        "Npz": "data.sources.npz:",
    },
    "data.splits": {"ArraySplit": "data.array_split:"},
    "data.store": dict.fromkeys(("find_store", "has_store"), "data.store_places:"),
    "distill.bank": {"centring": "centering"},
    "distill.neighbours": {"nearest_neighbours": "nearest_neighbors"},
    "distill.teachers": {"settings_of": "settings_by_loss"},
    "evaluate.gauges.agreement": {"centred_cosine": "centered_cosine"},
    "evaluate.gauges.collapse": {"gauges": "collapse_metrics"},
    "evaluate.gauges.lidar": {"view_gauges": "view_metrics"},
    "evaluate.nearest": {"has_fast_bf16": "label_free.candidates:", "neighbours": "neighbors"},
    "evaluate.opening.pictures": {"open_pictures": "open_images"},
    "evaluate.probes.supervised": {"LabelledTraining": "LabeledTraining"},
    "evaluate.rows": {"standardisation": "standardization"},
    "experiment": {"Experiment": "experiment.schema:", "PaperSettings": "experiment.schema:"},
    "foreign.formats": {"recognise": "recognize"},
    "losses.cc": {"neighbouring_differences": "neighboring_differences"},
    "losses.matching": {
        "Standardise": "Standardize",
        "StandardisedRegression": "StandardizedRegression",
    },
    "losses.relations": {"standardised": "standardized"},
    "losses.rkd": {"centred_gram": "centered_gram"},
    "losses.srd": {"BatchStandardise": "BatchStandardize"},
    "measure.turns": {
        "Ratio": "Speedup",
        "Turns": "TimedTurns",
        "ratio": "speedup_of",
        "take_turns": "time_in_turns",
    },
    "models.artifact_files": {
        "CODED_WEIGHTS": "artifacts.description:",
        "TORCH_WEIGHTS": "artifacts.description:",
    },
    "models.coded_bytes": {"read": "read_code", "write": "write_code"},
    "models.torchvision_twins": {"TWINS": "EQUIVALENTS", "timm_twin": "timm_equivalent"},
    "probing.tables": {"GAUGES": "LABEL_FREE", "gauges_table": "label_free_table"},
    "record.axes": {"COLOURS": "COLORS"},
    "record.columns": {"GAUGE_COLUMNS": "LABEL_FREE_COLUMNS"},
    "record.plots": {"GAUGES": "LABEL_FREE", "gauges_side_by_side": "label_free_side_by_side"},
    "record.rankings": {"GAUGES": "LABEL_FREE"},
    "record.run": {"SCHEMA": "record.run_record:"},
    "record.tensorboard": {"TensorboardMirror": "TensorboardLogger"},
    "record.tracker": {
        "Mirror": "Logger",
        "TensorboardMirror": "record.tensorboard:TensorboardLogger",
        "WandbMirror": "record.wandb_logger:WandbLogger",
        "mirrored_config": "record.wandb_logger:logged_config",
    },
    "record.verdict": {"judge": "check_claims"},
    "teachers": {"Pictures": "ImageSpec"},
    "terminal": {"show": "terminal.console:"},
}
"""Old module: its names that are called otherwise, or elsewhere: ``module:name``, ``module:``."""


class OldNames(MetaPathFinder, Loader):
    """Finds modules by the names they had in version 0.1."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The place of ``name`` if it is the old name of a module, else None."""
        package, _, old = name.partition(".")
        if package != PACKAGE or old not in MOVED:
            return None
        return ModuleSpec(name, self, is_package=any(m.startswith(f"{old}.") for m in MOVED))

    def exec_module(self, module: ModuleType) -> None:
        """Let ``module`` stand for the one that has its content now."""
        old = module.__name__.removeprefix(f"{PACKAGE}.")
        new = import_module(f"{PACKAGE}.{MOVED[old]}")
        _notify(old, MOVED[old])

        def attribute(name: str) -> Any:
            return getattr(*_present(old, name, new))

        module.__getattr__ = attribute  # type: ignore[method-assign]


class RenamedContent(MetaPathFinder):
    """Finds modules that are where they were in version 0.1, and adds their old names."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of ``name`` if something in it is called otherwise now, else None."""
        package, _, old = name.partition(".")
        if package != PACKAGE or old not in RENAMED or old in MOVED:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                module.__getattr__ = _old_names(old, module)  # type: ignore[method-assign]

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _old_names(old: str, module: ModuleType) -> Callable[[str], Any]:
    """What ``__getattr__`` of a module does that is where it was."""

    def attribute(name: str) -> Any:
        if name not in RENAMED[old]:
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        place, now = _present(old, name, module)
        _notify(f"{old}.{name}", f"{place.__name__.removeprefix(f'{PACKAGE}.')}.{now}")
        return getattr(place, now)

    return attribute


def _present(old: str, name: str, new: ModuleType) -> tuple[ModuleType, str]:
    """The module that has what ``name`` was in the module ``old``, and its name there."""
    elsewhere, _, now = RENAMED.get(old, {}).get(name, name).rpartition(":")
    return import_module(f"{PACKAGE}.{elsewhere}") if elsewhere else new, now or name


def _notify(old: str, new: str) -> None:
    warnings.warn(
        f"{PACKAGE}.{old} is now {PACKAGE}.{new}; the old name will go with version 1.0",
        FutureWarning,
        stacklevel=3,
    )


def install() -> None:
    """Let old names be imported; modules that exist are found before :class:`OldNames` is asked."""
    if not any(isinstance(finder, OldNames) for finder in sys.meta_path):
        sys.meta_path.append(OldNames())
        sys.meta_path.insert(0, RenamedContent())
