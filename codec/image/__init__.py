"""Pictures in and out."""

from mcodec.image.metadata import Metadata
from mcodec.image.pixels import from_tensor, to_tensor, to_uint8, window_tensor
from mcodec.image.raster import Picture, Raster, Samples, to_raster
from mcodec.image.reading import read_image, read_raster
from mcodec.image.strips import Strips, TensorSamples
from mcodec.image.writing import IN_BANDS, format_of, save, write_bytes, write_image, writes_to

__all__ = [
    "IN_BANDS",
    "Metadata",
    "Picture",
    "Raster",
    "Samples",
    "Strips",
    "TensorSamples",
    "format_of",
    "from_tensor",
    "read_image",
    "read_raster",
    "save",
    "to_raster",
    "to_tensor",
    "to_uint8",
    "window_tensor",
    "write_bytes",
    "write_image",
    "writes_to",
]
