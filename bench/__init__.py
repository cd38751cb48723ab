"""Benchmarks: rate-distortion and speed, from real files and in one run."""
