"""The only room with labels, and the gauges that need none."""
