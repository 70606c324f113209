"""The packaged configs, found by `ssdistill run NAME`."""
