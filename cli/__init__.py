"""The `mcodec` command: a thin layer over the Python API."""
