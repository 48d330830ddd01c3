"""Causal convolutions with long kernels, by Fourier transforms."""

import torch
from torch import Tensor

from retnet.ops.reference import accumulation_dtype


def causal_convolution(x: Tensor, kernel: Tensor) -> Tensor:
    """y_t = sum_s kernel_s x_(t - s) along the last axis, of T numbers each.

    x: [..., T]; kernel: [..., T], with as many leading axes as can be broadcast. In fp32 (fp64 for
    fp64), since sums of thousands of numbers are.
    """
    dtype, length = accumulation_dtype(x.dtype), x.shape[-1]
    size = 2 * length
    product = torch.fft.rfft(x.to(dtype), n=size) * torch.fft.rfft(kernel.to(dtype), n=size)
    return torch.fft.irfft(product, n=size)[..., :length]
