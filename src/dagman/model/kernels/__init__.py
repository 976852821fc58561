"""Triton kernels for a GPU, each beside the reference of its signature; imported only when they are chosen."""
