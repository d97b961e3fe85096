"""Faster local response normalization and depthwise convolution in channels-last memory, for any model.

The package is independent of fastcnn and requires only torch.
"""

from fastcnn_kernels.accelerate import Report, accelerate, restore
from fastcnn_kernels.depthwise_conv import DepthwiseConv2d, depthwise_conv2d
from fastcnn_kernels.lrn import LocalResponseNorm, local_response_norm
from fastcnn_kernels.reference import depthwise_conv2d_reference, local_response_norm_reference

__all__ = [
    "DepthwiseConv2d",
    "LocalResponseNorm",
    "Report",
    "accelerate",
    "depthwise_conv2d",
    "depthwise_conv2d_reference",
    "local_response_norm",
    "local_response_norm_reference",
    "restore",
]
