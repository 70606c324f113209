"""Int8 quantization for every runtime that supports it."""
