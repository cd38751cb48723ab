"""Pillow plugin: `.mci` files with `Image.open` and `Image.save`.

::

    import mcodec.pillow                      # registers
    image = Image.open("photo.mci")           # reads the header; weights are loaded with the pixels
    image.save("copy.mci", quality=60)

`save` takes `quality` (1 to 100, default 50), `metadata` ("all", "no-gps", "none") and `effort` (1 to 9, default 1);
`icc_profile`, `exif` and `xmp` replace what the image has, empty ones remove it. `register(model=..., device=...)`
chooses weights and device.

imageio goes through Pillow: `imageio.v3.imread("a.mci")` and `imwrite("a.mci", array, quality=60)` work as well.
"""

from __future__ import annotations

import mimetypes
from typing import IO, Any, cast

from PIL import Image, ImageFile

from mcodec import container
from mcodec.container import TAG_ALPHA, TAG_EXIF, TAG_ICC, TAG_XMP, Kind
from mcodec.errors import CodecError, NotAnMciFile
from mcodec.image.metadata import Metadata, of_image
from mcodec.reading import codec_for, default_codec

FORMAT, MIME, SUFFIX = "MCI", "image/x-mci", ".mci"

#: Options that replace metadata, and where PNG files may have it under another name.
_REPLACED = {"icc_profile": "", "exif": "Raw profile type exif", "xmp": "XML:com.adobe.xmp"}

_choice: dict[str, Any] = {"model": None, "device": "auto"}


class MciImageFile(ImageFile.ImageFile):
    """A .mci file as Pillow sees it: the header at once, the pixels when they are asked for."""

    format = FORMAT
    format_description = "mcodec learned image codec"

    def _open(self) -> None:
        self._data = cast(IO[bytes], self.fp).read()
        try:
            file = container.unpack(self._data)
        except NotAnMciFile as error:
            raise SyntaxError(str(error)) from error  # Pillow's sign for "not this format"
        except CodecError as error:
            raise OSError(str(error)) from error
        header = file.header
        self._size = header.width, header.height
        self._mode = _mode(header.kind, file.section(TAG_ALPHA) is not None)
        self.info.update(Metadata(file.section(TAG_ICC), file.section(TAG_EXIF), file.section(TAG_XMP)).info())
        self.tile = []

    def load(self) -> Any:
        """Decode; OSError as from other plugins where the file needs other weights."""
        if self._data:
            try:  # Image.open has compared the size with Image.MAX_IMAGE_PIXELS
                image = codec_for(self._data, **_choice).decode(self._data, max_pixels=None)
            except CodecError as error:
                raise OSError(str(error)) from error
            self.im, self._data = image.im, b""
            if self._exclusive_fp and self.fp:  # Pillow closes a file behind its last tile, and here is none
                self.fp.close()
            self.fp = None
        return super().load()


def _mode(kind: Kind, has_alpha: bool) -> str:
    if has_alpha:
        return "LA" if kind.grey else "RGBA"
    return {Kind.BILEVEL: "1", Kind.GREY16: "I;16"}.get(kind, "L" if kind.grey else "RGB")


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(container.MAGIC)


def _save(image: Image.Image, file: IO[bytes], _: str | bytes) -> None:
    options = getattr(image, "encoderinfo", {})
    copy = image.copy()
    copy.info.update(of_image(image).info())  # of a TIFF file, EXIF is not in the info, which is all a copy keeps
    for key, elsewhere in _REPLACED.items():
        if key in options:
            value = options[key]
            copy.info.pop(elsewhere, None)
            copy.info[key] = value.tobytes() if isinstance(value, Image.Exif) else value or None
    chosen = {key: options[key] for key in ("quality", "metadata", "effort") if key in options}
    try:
        data = default_codec(**_choice).encode(copy, **chosen)
    except CodecError as error:
        raise OSError(str(error)) from error  # as from other plugins
    file.write(data)


def register(model: str | None = None, device: str = "auto") -> None:
    """Make Pillow read and write .mci files with these weights; done once on import with the default ones."""
    _choice.update(model=model, device=device)
    Image.register_open(FORMAT, MciImageFile, _accept)
    Image.register_save(FORMAT, _save)
    Image.register_extension(FORMAT, SUFFIX)
    Image.register_mime(FORMAT, MIME)
    mimetypes.add_type(MIME, SUFFIX)


register()
