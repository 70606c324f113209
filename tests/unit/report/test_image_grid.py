"""Images of any shape in the cells of a grid."""

import numpy as np

from ssdistill.report.charts.grids import SHARED_RGB, image_grid


def test_an_image_that_is_no_square_is_shown_whole_in_its_aspect_ratio():
    tall_HWC = np.full((32, 16, 3), 200, np.uint8)
    sheet_HWC = image_grid([[tall_HWC]], cell=64)
    opaque = sheet_HWC[..., 3] == 255
    assert opaque[:, 16:48].all() and not opaque[:, :16].any() and not opaque[:, 48:].any()
    assert (sheet_HWC[:, 16:48, :3] == 200).all()


def test_the_rim_is_seen_where_the_cell_is_empty():
    sheet_HWC = image_grid([[np.zeros((32, 16, 3), np.uint8)]], [[True]], cell=64)
    assert sheet_HWC[0, 0].tolist() == [*SHARED_RGB, 255]
