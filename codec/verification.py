"""Whether a file holds what was encoded: for those who delete the original."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from mcodec.errors import CodecError, VerificationError

if TYPE_CHECKING:
    from mcodec.api import Codec
    from mcodec.image import Raster


def verify(
    codec: Codec, original: Raster, codes: list[torch.Tensor], metadata: str, data: bytes, made: bytes | None = None
) -> None:
    """Decode a file and compare it with what it was made of; VerificationError names the first difference.

    codes: those of the encoder, as `Codec.encode_with_codes` gives them; they must come back equal, as must size, kind
    of samples, alpha and the `metadata` that the file was to carry. Samples have to decode; as the loss is chosen, and
    they follow from codes, they are not compared with the original's. made: the encoder's bytes; all of them must be
    there.
    """
    try:
        found, read = codec.decode_with_codes(data, max_pixels=None)
    except CodecError as error:
        raise VerificationError(f"what was written cannot be decoded: {error}") from error
    if (found.size, found.kind) != (original.size, original.kind):
        raise _differs("the size or the kind of samples")
    for index, (a, b) in enumerate(zip(codes, read, strict=True)):
        if not torch.equal(a.int(), b.int()):
            raise _differs(f"the codes of stage {index + 1}")
    if (found.alpha is None) != (original.alpha is None) or (
        found.alpha is not None and original.alpha is not None and not np.array_equal(found.alpha, original.alpha)
    ):
        raise _differs("alpha")
    if found.metadata.info() != original.metadata.kept(metadata).info():
        raise _differs("the metadata")
    if made is not None and data != made:
        raise _differs("the bytes")


def _differs(what: str) -> VerificationError:
    return VerificationError(f"what was written is not what was encoded: {what} differ")
