"""Every exception that the package raises on purpose.

::

    CodecError
    ├── ImageError            an input picture cannot be read, or is not one that can be coded
    ├── TargetError           no quality reaches the size or the fidelity that was asked for
    ├── FormatError           the bytes are not a readable .mci file
    │   ├── NotAnMciFile      wrong magic bytes
    │   ├── UnsupportedVersion  written by a newer mcodec
    │   ├── CorruptStream     truncated, damaged (CRC) or inconsistent
    │   └── LimitExceeded     a header field above its named limit, or more pixels than the caller decodes
    ├── ModelError            weights are missing, damaged or not loadable
    │   └── WrongModel        the file was made by other weights
    ├── VerificationError     a file that was written does not hold what was encoded
    ├── TrainingError         a training configuration or data set that cannot be used
    └── BenchError            a benchmark that cannot be run, or results that cannot be compared

LossWarning says that something of a picture was left out, because what it goes to cannot hold it.

A caller's mistake (a wrong type, a quality out of range) is a plain ``ValueError``.
"""

from __future__ import annotations

#: What torch says where there is too little memory: it has no class for it that CPU and CUDA share.
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "std::bad_alloc")


class CodecError(Exception):
    """Base of the tree; the command line prints its message in one line and exits with status 1."""


class ImageError(CodecError):
    """An input picture cannot be read, or is not one that can be coded."""


class TargetError(CodecError):
    """No quality reaches the size or the fidelity that was asked for; the message names the nearest."""


class FormatError(CodecError):
    """The bytes are not a readable .mci file."""


class NotAnMciFile(FormatError):
    """The magic bytes are not those of a .mci file."""


class UnsupportedVersion(FormatError):
    """The file has a format version that this release does not know."""


class CorruptStream(FormatError):
    """The file is truncated, damaged or inconsistent."""


class LimitExceeded(FormatError):
    """A field of the header is above its named limit, or more pixels are claimed than the caller decodes."""


class ModelError(CodecError):
    """Weights are missing, damaged or not loadable."""


class WrongModel(ModelError):
    """The file was made by weights that are not the ones loaded."""


class VerificationError(CodecError):
    """A file that was written does not hold what was encoded; it has not been put in place."""


class TrainingError(CodecError):
    """A training configuration or data set cannot be used."""


class BenchError(CodecError):
    """A benchmark cannot be run as asked, or results cannot be compared."""


class LossWarning(UserWarning):
    """A picture went to something that cannot hold all of it; the message names what is left out."""


def is_lack_of_memory(error: Exception) -> bool:
    """Whether a picture was too large for the memory of the machine or its GPU."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)
    )
