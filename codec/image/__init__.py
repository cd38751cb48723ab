"""Pixels in and out."""

from mcodec.image.pixels import (
    Picture,
    from_tensor,
    read_image,
    to_array,
    to_tensor,
    write_bytes,
    write_image,
)

__all__ = ["Picture", "from_tensor", "read_image", "to_array", "to_tensor", "write_bytes", "write_image"]
