"""SVG charts, one file for each kind, written by hand: a library would lose what a reader sees.

Compared on the accuracy and size of 16 models (``experiments/cifar10_compression_resnet18``) with
their spread, and on three training curves of 400 points, each drawn 700 and 350 pixels wide:

=====================================  =======  =================  ===========================
..                                     by hand  matplotlib 3.11.2  Altair 6.3, vl-convert 1.9
=====================================  =======  =================  ===========================
kB of accuracy against size, twice          17                 70                           59
kB of the curves, twice                     64                149                           99
pairs of names that overlap, 700 px          0                  8                            8
pairs of names that overlap, 350 px          0                  8                           13
names omitted, 700 and 350 px          0 and 4                  0                            0
text that can be selected and found        yes     with an option                          yes
colors of dark mode                        yes  if hex is replaced   not tried; ground is white
names where one points, no script          yes                 no                           no
CPU seconds, import and four charts       0.35                1.7                          2.4
MiB to install                               0                 76                          103
=====================================  =======  =================  ===========================

Both libraries were used as they are: neither moves names apart without a further package or code
like ``placing.py``. Omitted names are shown where one points at them. CPU seconds are
the least of three runs on a busy machine.
"""
