"""Any picture that a person may upload -> an upright RGB picture, or one sentence that says what is wrong."""

import io
import re
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

from mlmamba.errors import UserError

ImageSource = str | Path | bytes | bytearray | BinaryIO | Image.Image

MAX_FILE_BYTES = 30 * 1024**2
MAX_PIXELS = 50_000_000
# no tower sees more than 384 px, so that a large JPEG may be decoded at a half, a quarter or an eighth
DRAFT_SIZE = (1536, 1536)

# Pillow reads many more, some of them by running other programs (EPS), some before their size is known (ICO)
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "HEIF", "AVIF", "BMP", "TIFF", "JPEG2000", "PPM")
ASKED_FOR = "JPEG, PNG, WebP, GIF, HEIC, BMP or TIFF"

# What keeps a small file from taking minutes or gigabytes; sound pictures stay far below
MAX_READS = 10_000  # to open a file: pieces, chunks, tags, comments
MAX_SCANS = 100  # each goes over all pixels of a JPEG; a progressive one has about ten
MAX_STRIPS = 2 * 1024**2  # bytes of a TIFF's table of strips or tiles, each of which becomes an object
STRIP_TABLES = (TiffImagePlugin.STRIPOFFSETS, TiffImagePlugin.TILEOFFSETS)
# what starts a segment of a JPEG; the others stand within a scan or alone
JPEG_MARKER = re.compile(rb"\xff+([^\x00\x01\xd0-\xd7\xff])")
JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8", 0xDA, 0xD9


def open_image(source: ImageSource) -> Image.Image:
    """Open a path, bytes, an open binary file or a PIL image as RGB.

    Upright (EXIF), transparency on white, 16 bits scaled to 8, the first frame of an animation. Raises
    UserError with what to do about it for whatever can't be shown; the file is never decoded before its
    size in pixels is known.
    """
    register_heif()
    guard_tags()
    name = f" {Path(source).name}" if isinstance(source, str | Path) else ""
    try:
        if isinstance(source, Image.Image):
            image = source
            check_size(*image.size)
        else:
            data = read(source)
            check_scans(data)
            file = Pieces(data)
            image = Image.open(file, formats=FORMATS)
            check_size(*image.size)
            file.left = None
            image.draft("RGB", DRAFT_SIZE)  # only a JPEG that is larger heeds it
        image.load()
        return upright_rgb(image)
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_many_pixels() from error
    except Image.UnidentifiedImageError as error:
        raise UserError(f"The file{name} is not a picture we can read; upload a {ASKED_FOR} file.") from error
    except MemoryError as error:
        raise UserError(f"The picture{name} needs too much memory; make it smaller and try again.") from error
    except Exception as error:  # decoders raise anything on a broken file: OSError, SyntaxError ...
        raise UserError(
            f"The picture{name} is damaged or incomplete; save or download it again, as a {ASKED_FOR} file."
        ) from error


def read(source: str | Path | bytes | bytearray | BinaryIO) -> bytes:
    """The bytes of a source, at most MAX_FILE_BYTES of them."""
    if isinstance(source, bytes | bytearray):
        data = bytes(source)
    elif isinstance(source, str | Path):
        try:
            with open(source, "rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError as error:
            raise UserError(f"There is no file {source}; check the path.") from error
        except IsADirectoryError as error:
            raise UserError(f"{source} is a folder; name one picture in it.") from error
        except (OSError, ValueError) as error:  # ValueError: a null byte in the path
            raise UserError(f"{source} can't be read ({error}); check path and permissions.") from error
    else:
        data = source.read(MAX_FILE_BYTES + 1)
    if not data:
        raise UserError(f"The file is empty; upload a {ASKED_FOR} file.")
    if len(data) > MAX_FILE_BYTES:
        raise too_large()
    return data


class Pieces(io.BytesIO):
    """A file in memory that is read in at most MAX_READS pieces until `left` is None."""

    left: int | None = MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise ValueError("the file is in too many pieces")
        return super().read(size)


class Once:
    """A file of which no more is read than it holds."""

    def __init__(self, file: BinaryIO) -> None:
        here = file.tell()
        self.left = file.seek(0, io.SEEK_END)
        file.seek(here)
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise ValueError("tags of the file share their bytes")
        return data


@cache
def guard_tags() -> None:
    """Teach Pillow to refuse a TIFF or EXIF whose tags are larger than the file.

    It reads all tags at once, and thousands of them may point at the same megabytes.
    """
    load = TiffImagePlugin.ImageFileDirectory_v2.load

    def guarded(self: TiffImagePlugin.ImageFileDirectory_v2, fp: BinaryIO) -> None:
        load(self, Once(fp))  # type: ignore[arg-type]
        if any(len(self._tagdata.get(tag, b"")) > MAX_STRIPS for tag in STRIP_TABLES):
            raise ValueError("the picture is in too many strips")

    TiffImagePlugin.ImageFileDirectory_v2.load = guarded  # type: ignore[method-assign, assignment]


def check_scans(data: bytes) -> None:
    """Refuse a JPEG that would go over its pixels for hours, a few bytes at a time."""
    scans, at = 0, len(JPEG_START)
    while data.startswith(JPEG_START) and (marker := JPEG_MARKER.search(data, at)):
        if marker[1][0] == JPEG_END:
            break
        scans += marker[1][0] == JPEG_SCAN
        if scans > MAX_SCANS:
            raise ValueError("the JPEG has too many scans")
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")


def check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise UserError("The picture has no pixels; upload another one.")
    if width * height > MAX_PIXELS:
        raise too_many_pixels(f"{width:,} x {height:,} pixels")


def too_large() -> UserError:
    return UserError(
        f"The file is larger than the limit of {MAX_FILE_BYTES // 1024**2} MB; save the picture smaller and try again."
    )


def too_many_pixels(size: str = "too many pixels") -> UserError:
    return UserError(
        f"The picture has {size}, and the limit is {MAX_PIXELS // 1_000_000} million in all; "
        "make it smaller and try again."
    )


def upright_rgb(image: Image.Image) -> Image.Image:
    """A decoded picture -> RGB, as a viewer shows it."""
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # a picture with broken EXIF is still a picture
        image = image.copy()
    if image.mode.startswith(("I", "F")):
        return deep_grey(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def deep_grey(image: Image.Image) -> Image.Image:
    """Greys of 16 or 32 bits or floats -> RGB. Pillow's own convert would clip at 255 instead of scaling."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0.0, neginf=0.0)
    largest = float(values.max())
    # the file does not say what white is: the smallest usual range that holds all values
    ranges = (65535.0, 2.0**31) if image.mode.startswith("I") else (1.0, 255.0, 65535.0, largest)
    white = next(white for white in ranges if largest <= white)
    return Image.fromarray((values / white * 255).round().clip(0, 255).astype(np.uint8)).convert("RGB")


@cache
def register_heif() -> None:
    """Teach Pillow to read the photos of iPhones."""
    from pillow_heif import register_heif_opener

    register_heif_opener()
