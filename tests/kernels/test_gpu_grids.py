"""The grids of random layers on a CUDA device, where the kernels are compiled: `python -m pytest -m gpu`.

In a module of their own, since their fixtures hold for all of its tests.
"""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from grid_depthwise_conv import kernels_alone as depthwise_alone  # noqa: F401
from grid_depthwise_conv import (  # noqa: F401
    test_stride_1,
    test_stride_2,
    test_the_weights_gradient_is_the_same_bits_again,
)
from grid_lrn import kernels_alone as norm_alone  # noqa: F401
from grid_lrn import test_a_view_that_begins_anywhere, test_it_agrees_with_float64  # noqa: F401

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(1200),
]
