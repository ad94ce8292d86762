"""Every kind of file that people upload, made here and compared with what was drawn."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from mlmamba import images
from mlmamba.errors import UserError
from mlmamba.images import open_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def quarters(size: int = 64) -> Image.Image:
    """Red top left, green top right, blue bottom left, white bottom right."""
    image = Image.new("RGB", (size, size), WHITE)
    half = size // 2
    image.paste(RED, (0, 0, half, half))
    image.paste(GREEN, (half, 0, size, half))
    image.paste(BLUE, (0, half, half, size))
    return image


def close(pixel: object, expected: tuple[int, int, int], tolerance: int = 12) -> bool:
    return bool(np.abs(np.subtract(pixel, expected)).max() <= tolerance)


def corners(image: Image.Image) -> list[object]:
    right, bottom = image.width - 4, image.height - 4
    return [image.getpixel(place) for place in ((4, 4), (right, 4), (4, bottom), (right, bottom))]


def assert_quarters(image: Image.Image, expected=(RED, GREEN, BLUE, WHITE)) -> None:
    assert image.mode == "RGB"
    for pixel, colour in zip(corners(image), expected, strict=True):
        assert close(pixel, colour), (corners(image), expected)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tiff", "gif", "avif"])
def test_usual_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture.{suffix}"
    quarters().save(path)
    assert_quarters(open_image(path))


def test_every_kind_of_source(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    quarters().save(path)
    with path.open("rb") as file:
        for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), file, quarters()):
            assert_quarters(open_image(source))


def test_a_picture_in_memory_is_left_as_it_was() -> None:
    original = quarters()
    open_image(original).paste(BLUE, (0, 0, 64, 64))
    assert_quarters(original)


def test_heic(tmp_path: Path) -> None:
    images.register_heif()
    path = tmp_path / "IMG_0001.HEIC"
    quarters().save(path, format="HEIF", quality=95)
    assert_quarters(open_image(path))


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, (RED, GREEN, BLUE, WHITE)),
        (2, (GREEN, RED, WHITE, BLUE)),
        (3, (WHITE, BLUE, GREEN, RED)),
        (6, (BLUE, RED, WHITE, GREEN)),  # a viewer turns it a quarter clockwise
        (8, (GREEN, WHITE, RED, BLUE)),
    ],
)
def test_exif_rotated(tmp_path: Path, orientation: int, expected: tuple) -> None:
    path = tmp_path / "rotated.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    quarters().save(path, exif=exif, quality=95, subsampling=0)
    assert_quarters(open_image(path), expected)


def test_exif_rotated_changes_the_sides(tmp_path: Path) -> None:
    path = tmp_path / "portrait.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    assert open_image(path).size == (20, 40)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_huge_and_broken_exif_are_no_obstacle(tmp_path: Path) -> None:
    broken = (b"Exif\0\0" + b"\xff" * 65_000, b"Exif\0\0II*\0\xff\xff\xff\xff", b"rubbish")
    for number, exif in enumerate(broken):
        path = tmp_path / f"{number}.jpg"
        quarters().save(path, exif=exif, quality=95, subsampling=0)
        assert_quarters(open_image(path))


def test_jpeg_of_several_pictures(tmp_path: Path) -> None:
    """Many phones write MPO and call it JPEG."""
    path = tmp_path / "phone.jpg"
    quarters().save(path, format="MPO", save_all=True, append_images=[Image.new("RGB", (64, 64))], quality=95)
    assert_quarters(open_image(path))


def test_cmyk(tmp_path: Path) -> None:
    path = tmp_path / "print.jpg"
    quarters().convert("CMYK").save(path, quality=95, subsampling=0)
    assert_quarters(open_image(path))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"deep.{suffix}"
    values = np.array([[0, 32768], [65535, 16384]], dtype=np.uint16)
    Image.fromarray(values).save(path)
    assert np.asarray(open_image(path))[..., 0].tolist() == [[0, 128], [255, 64]]


def test_16_bit_colour(tmp_path: Path) -> None:
    """Pillow writes no 16-bit RGB, so that the PNG is put together by hand."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    row = b"\0" + struct.pack(">HHH", 65535, 32768, 0)
    path = tmp_path / "deep.png"
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    assert close(open_image(path).getpixel((0, 0)), (255, 128, 0), tolerance=1)


def test_float_grey(tmp_path: Path) -> None:
    path = tmp_path / "float.tiff"
    Image.fromarray(np.array([[0.0, 0.5], [1.0, np.nan]], dtype=np.float32)).save(path)
    assert np.asarray(open_image(path))[..., 0].tolist() == [[0, 128], [255, 0]]


def test_one_bit(tmp_path: Path) -> None:
    path = tmp_path / "fax.png"
    Image.fromarray(np.array([[False, True]])).save(path)
    assert np.asarray(open_image(path)).tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_alpha_lies_on_white(tmp_path: Path) -> None:
    rgba = quarters().convert("RGBA")
    rgba.paste((0, 0, 0, 0), (0, 0, 32, 32))  # clear black, which must not come out black
    rgba.paste((255, 0, 0, 128), (32, 0, 64, 32))
    for suffix in ("png", "webp"):
        path = tmp_path / f"alpha.{suffix}"
        rgba.save(path, lossless=True)
        assert_quarters(open_image(path), (WHITE, (255, 127, 127), BLUE, WHITE))


def test_grey_with_alpha(tmp_path: Path) -> None:
    path = tmp_path / "la.png"
    image = Image.new("LA", (64, 64), (0, 255))
    image.paste((0, 0), (0, 0, 32, 32))
    image.save(path)
    assert_quarters(open_image(path), (WHITE, (0, 0, 0), (0, 0, 0), (0, 0, 0)))


@pytest.mark.parametrize("transparency", [0, bytes([0, 255, 255, 255])])
def test_palette_with_alpha(tmp_path: Path, transparency: int | bytes) -> None:
    path = tmp_path / "palette.png"
    image = Image.fromarray(np.kron([[0, 1], [2, 3]], np.ones((32, 32))).astype(np.uint8)).convert("P")
    image.putpalette([*RED, *GREEN, *BLUE, *(0, 0, 0)])
    image.save(path, transparency=transparency)
    assert_quarters(open_image(path), (WHITE, GREEN, BLUE, (0, 0, 0)))


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_the_first_frame_of_an_animation(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"moving.{suffix}"
    others = [Image.new("RGB", (64, 64), colour) for colour in (BLUE, GREEN)]
    quarters().save(path, save_all=True, append_images=others, lossless=True)
    assert Image.open(path).n_frames == 3
    assert_quarters(open_image(path))


@pytest.mark.parametrize("size", [(1, 1), (3000, 10), (10, 3000)])
def test_odd_shapes_are_welcome(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "odd.png"
    Image.new("RGB", size, RED).save(path)
    image = open_image(path)
    assert image.size == size
    assert image.getpixel((0, 0)) == RED


def test_a_large_jpeg_is_decoded_small(tmp_path: Path) -> None:
    path = tmp_path / "camera.jpg"
    quarters(4096).save(path)
    image = open_image(path)
    assert max(image.size) < 4096
    assert min(image.size) >= images.DRAFT_SIZE[0]
    assert_quarters(image)


@pytest.mark.parametrize("size", [(20_000, 20_000), (12_000, 8_000), (10_000, 6_000)])
def test_too_many_pixels_are_refused_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    """Above Pillow's limit for an error, above its limit for a warning, and only above ours."""
    path = tmp_path / "bomb.png"
    Image.new("1", size).save(path)

    def decode(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decode)
    with warnings.catch_warnings(), pytest.raises(UserError, match="50 million"):
        warnings.simplefilter("error")
        open_image(path)


def test_the_size_is_said() -> None:
    with pytest.raises(UserError, match=r"10,000 x 6,000 pixels"):
        open_image(Image.new("1", (10_000, 6_000)))


def test_too_large_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.bmp"
    quarters().save(path)
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 1000)
    with pytest.raises(UserError, match="limit"):
        open_image(path)


def truncated(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, format=kind, **options)
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"])
def test_a_truncated_file(kind: str) -> None:
    with pytest.raises(UserError, match=r"damaged|not a picture"):
        open_image(truncated(kind))


def test_random_damage_never_raises_anything_else() -> None:
    """Flip bytes all over each format: a picture or a sentence, nothing else."""
    images.register_heif()
    random = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "HEIF"):
        buffer = io.BytesIO()
        quarters().save(buffer, format=kind)
        for _ in range(40):
            damaged = bytearray(buffer.getvalue())
            for place in random.integers(0, len(damaged), 5):
                damaged[place] = random.integers(256)
            try:
                assert open_image(damaged).mode == "RGB"
            except UserError as error:
                assert str(error).endswith(".")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("notes.jpg", b"Dear diary, this is text.\n", "notes.jpg is not a picture"),
        ("empty.jpg", b"", "empty"),
        ("drawing.jpg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "JPEG, PNG"),
        ("page.png", b"%PDF-1.7\n", "not a picture"),
        ("print.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not a picture"),
    ],
)
def test_what_is_no_picture(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        open_image(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        open_image(tmp_path / "missing.jpg")
    with pytest.raises(UserError, match="folder"):
        open_image(tmp_path)
    with pytest.raises(UserError):
        open_image("a\0b")
    with pytest.raises(UserError):
        open_image("x" * 10_000)
