"""Kernels for GPUs, in Triton. Nothing here is imported before it is asked for."""
