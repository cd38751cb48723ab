"""Pictures in and out."""

from mcodec.image.metadata import Metadata
from mcodec.image.raster import Picture, Raster, Samples, taken, to_raster
from mcodec.image.reading import read_image, read_raster, register
from mcodec.image.strips import Strips, TensorSamples
from mcodec.image.writing import IN_BANDS, format_of, save, write_image, writes_to

__all__ = [
    "IN_BANDS",
    "Metadata",
    "Picture",
    "Raster",
    "Samples",
    "Strips",
    "TensorSamples",
    "format_of",
    "read_image",
    "read_raster",
    "register",
    "save",
    "taken",
    "to_raster",
    "write_image",
    "writes_to",
]
