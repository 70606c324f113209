"""Low-rank factors of layers: their decomposition, ranks and costs. The step is `lowrank`."""
