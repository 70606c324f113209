"""List the tests that also run with the lowest versions that setup.cfg promises."""

SMOKE = {
    # Losses, layers and formulas that lightly, timm and torchvision bring.
    "test_golden.py",
    "test_losses.py",
    "test_methods.py",
    "test_macs.py",
    "test_taps.py",
    "test_lars.py",
    "test_backbones.py",
    "test_teacher_timm.py",
    "test_teacher_torchvision.py",
    "test_formats_reading.py",
    # Files: safetensors, pickles, YAML, images, arrays.
    "test_artifacts.py",
    "test_config.py",
    "test_sources.py",
    "test_store.py",
    "test_decode.py",
    # Runtimes and exporters.
    "test_runtimes.py",
    "test_quantize.py",
    "test_openvino.py",
    "test_executorch.py",
    "test_int8_pt2e.py",
    "test_torch_export.py",
    # Compression: torch-pruning, scipy, transformers.
    "test_prune.py",
    "test_prune_attention.py",
    "test_compress_bert.py",
    # Training, evaluation and what they log: Fabric, scikit-learn, W&B, TensorBoard, rich.
    "test_chain.py",
    "test_loop.py",
    "test_linear_probe.py",
    "test_intervals.py",
    "test_probe_charts.py",
    "test_readme_tables.py",
    "test_tracker_wandb.py",
    "test_tracker_tensorboard.py",
}
"""Files that reach every required package: they run with the lowest versions, too."""
