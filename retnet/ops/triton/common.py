"""What the kernels share: products, masked tiles, powers of gamma."""

import triton
import triton.language as tl


@triton.jit
def product(a, b, sum_so_far, UPCAST: tl.constexpr):
    """a @ b + sum_so_far, in fp32. UPCAST: of fp32 copies, since Triton's interpreter computes
    wrongly with bf16.
    """
    if UPCAST:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sum_so_far, input_precision="ieee")


@triton.jit
def power(log2_gamma, exponent):
    """gamma^exponent, 1 for a negative one, which only tokens have that are masked away."""
    return tl.exp2(log2_gamma * tl.maximum(exponent, 0).to(tl.float32))


@triton.jit
def load_tile(x, row, row_stride, num_rows, column, num_columns):
    """Rows of x, each with consecutive columns: [row, column], zeros outside of it."""
    inside = (row < num_rows)[:, None] & (column < num_columns)[None, :]
    place = row.to(tl.int64)[:, None] * row_stride + column[None, :]
    return tl.load(x + place, mask=inside, other=0.0)


@triton.jit
def load_turned(x, row, row_stride, num_rows, column, num_columns):
    """The same as [column, row]: loaded so, for a product must not read an accumulator turned."""
    inside = (column < num_columns)[:, None] & (row < num_rows)[None, :]
    place = row.to(tl.int64)[None, :] * row_stride + column[:, None]
    return tl.load(x + place, mask=inside, other=0.0)
