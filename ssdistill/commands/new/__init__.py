"""The command `ssdistill new`: a small package with a kind of one's own.

What it writes is in `templates`, as files in which `$name` and the like are replaced. What such
a package must do is checked by `testing`.
"""
