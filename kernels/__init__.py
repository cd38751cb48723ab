"""Kernels: one file per operation, a plain torch reference in each."""
