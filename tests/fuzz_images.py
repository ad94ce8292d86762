"""Damaged picture files through `open_image`: each must end as an RGB picture or as one sentence.

Files are made from pictures of every format by flips, cuts, moved blocks, absurd sizes and splices. They are opened
in a process of its own, so that a crash, a hang or a greed for memory is counted and the run goes on. A file is made
from the seed and its number alone, and one that fails is kept.

    python -m tests.fuzz_images --files 10000 --seed 1
"""

import argparse
import io
import random
import resource
import signal
import struct
import subprocess
import sys
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from mlmamba import images
from mlmamba.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
CPU_SECONDS = 30  # for one file; 50 million pixels take some seconds of a slow core
WALL_SECONDS = 900  # for one file that waits and computes nothing
MEMORY = 1536 * 1024**2  # more than 50 million pixels need, whatever their mode
ADDRESS_SPACE = 4 * 1024**3  # beyond what is there at the start; a guard for the machine
LONGEST_SENTENCE = 300
WIDE = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 7000, 65500)


# ---- pictures to damage


@cache
def pictures() -> tuple[tuple[str, bytes], ...]:
    """(name, file) of sound pictures: the examples, and small ones in every variant that Pillow writes."""
    images.register_heif()
    y, x = np.mgrid[0:28, 0:36]
    rgb = np.stack([x * 7, y * 9, (x * y) % 256], axis=-1).astype(np.uint8)  # (28, 36, 3)
    colour = Image.fromarray(rgb)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, rgb.shape, dtype=np.uint8))
    grey, palette, bits = colour.convert("L"), colour.quantize(16), colour.convert("1")
    alpha, cmyk = colour.copy(), colour.convert("CMYK")
    alpha.putalpha(grey)
    deep = Image.fromarray((x * y * 60).astype(np.uint16))
    floats = Image.fromarray((x * y / 1000).astype(np.float32))
    others = [noise.rotate(180), colour.rotate(180)]  # of their own: Pillow notes a JPEG's settings on what it saves
    moving = {"save_all": True, "append_images": others, "duration": 40}
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8769] = 6, "A camera", {0x9003: "2024:01:01 00:00:00"}
    about = {"exif": exif.tobytes(), "icc_profile": bytes(range(256)) * 2}
    made: list[tuple[str, Image.Image, str, dict]] = [
        ("plain", colour, "JPEG", {}),
        ("grey", grey, "JPEG", {}),
        ("progressive", noise, "JPEG", {"progressive": True, "quality": 95}),
        ("restarts", noise, "JPEG", {"restart_marker_rows": 1, "subsampling": 0}),
        ("cmyk", cmyk, "JPEG", {}),
        ("exif", colour, "JPEG", {**about, "comment": b"a comment"}),
        ("several", colour, "MPO", {"save_all": True, "append_images": [noise]}),
        ("plain", colour, "PNG", {}),
        ("alpha", alpha, "PNG", about),
        ("grey alpha", alpha.convert("LA"), "PNG", {}),
        ("palette", palette, "PNG", {"transparency": bytes([0, 128]), "bits": 4}),
        ("one bit", bits, "PNG", {}),
        ("16 bits", deep, "PNG", {}),
        ("animated", colour, "PNG", moving),
        ("plain", palette, "GIF", {"interlace": 1, "comment": b"a comment"}),
        ("transparent", palette, "GIF", {"transparency": 3, "interlace": 0}),
        ("animated", colour, "GIF", {**moving, "loop": 0, "disposal": 2}),
        ("lossy", colour, "WEBP", {}),
        ("lossless", colour, "WEBP", {"lossless": True}),
        ("alpha", alpha, "WEBP", about),
        ("animated", alpha, "WEBP", moving),
        ("plain", colour, "BMP", {}),
        ("alpha", alpha, "BMP", {}),
        ("palette", palette, "BMP", {}),
        ("one bit", bits, "BMP", {}),
        ("plain", colour, "TIFF", {}),
        ("big", colour, "TIFF", {"big_tiff": True}),
        ("lzw", alpha, "TIFF", {"compression": "tiff_lzw", "icc_profile": about["icc_profile"]}),
        ("tiles", colour, "TIFF", {"compression": "tiff_adobe_deflate", "tiffinfo": {322: 16, 323: 16}}),
        ("jpeg", colour, "TIFF", {"compression": "jpeg"}),
        ("packbits", palette, "TIFF", {"compression": "packbits"}),
        ("fax", bits, "TIFF", {"compression": "group4"}),
        ("cmyk", cmyk, "TIFF", {"compression": "tiff_lzw"}),
        ("lab", colour.convert("LAB"), "TIFF", {}),
        ("16 bits", deep, "TIFF", {"compression": "tiff_deflate"}),
        ("floats", floats, "TIFF", {}),
        ("pages", colour, "TIFF", {"save_all": True, "append_images": others}),
        ("plain", colour, "HEIF", {}),
        ("plain", colour, "AVIF", {}),
        ("plain", colour, "JPEG2000", {}),
        ("plain", colour, "PPM", {}),
    ]
    # Pillow writes no run lengths: two rows of red, then the end of the picture
    runs = b"".join(struct.pack("<BB", 36, i % 16) + b"\0\0" for i in range(28)) + b"\0\1"
    table = bytes(range(64))
    sizes = struct.pack("<IiiHHIIiiII", 40, 36, 28, 1, 8, 1, len(runs), 0, 0, 16, 0)
    files = [("BMP runs", b"BM" + struct.pack("<IHHI", 118 + len(runs), 0, 0, 118) + sizes + table + runs)]
    for name, picture, kind, options in made:
        buffer = io.BytesIO()
        picture.copy().save(buffer, format=kind, **options)
        files.append((f"{kind} {name}", buffer.getvalue()))
    examples = sorted((ROOT / "examples").glob("*.jpg"))
    return (*files, *((f"JPEG {path.name}", path.read_bytes()) for path in examples))


# ---- damage


def flip(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.randint(1, 16)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def overwrite(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(len(data))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))


def damage_head(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.randint(1, 4)):
        data[chance.randrange(min(len(data), 256))] = chance.randrange(256)


def cut_off(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(1, len(data) + 1) :]


def block(data: bytearray, chance: random.Random) -> slice:
    start = chance.randrange(len(data))
    return slice(start, start + chance.randint(1, min(len(data), 512)))


def cut_out(data: bytearray, chance: random.Random) -> None:
    del data[block(data, chance)]


def repeat(data: bytearray, chance: random.Random) -> None:
    piece = block(data, chance)
    data[piece.start : piece.start] = data[piece] * chance.choice((1, 2, 50))


def insert(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data) + 1)
    data[at:at] = chance.randbytes(chance.randint(1, 256))


def swap(data: bytearray, chance: random.Random) -> None:
    one, other = block(data, chance), block(data, chance)
    data[one], data[other] = data[other], data[one]


def blow_up(data: bytearray, chance: random.Random) -> None:
    """An absurd number where the file says a size or, in a TIFF, any number of its directory."""
    fields = size_fields(bytes(data))
    for at, length in chance.sample(fields, min(len(fields), chance.randint(1, 2))):
        number = chance.choice((*WIDE, chance.getrandbits(32))) % 256**length
        data[at : at + length] = number.to_bytes(length, chance.choice(("little", "big")))


def splice(data: bytearray, chance: random.Random) -> None:
    """The start of this file, the end of another."""
    other = chance.choice(pictures())[1]
    data[chance.randrange(len(data)) :] = other[chance.randrange(len(other)) :]


def size_fields(data: bytes) -> list[tuple[int, int]]:
    """(offset, bytes) of the numbers that say how large a picture is, or where its parts are."""
    if data.startswith(b"\x89PNG"):
        return [(16, 4), (20, 4), (24, 1), (25, 1)]
    if data.startswith(b"GIF"):
        frame = data.find(b",", 13)
        return [(6, 2), (8, 2), *((frame + i, 2) for i in (1, 3, 5, 7) if frame > 0)]
    if data.startswith(b"BM"):
        return [(10, 4), (14, 4), (18, 4), (22, 4), (28, 2), (30, 4), (46, 4)]
    if data.startswith(b"RIFF"):
        return [(4, 4), (16, 4), (24, 3), (27, 3), (26, 2), (28, 2)]
    if data.startswith(b"\xff\xd8"):
        frames = [data.find(bytes([0xFF, marker])) for marker in (0xC0, 0xC1, 0xC2)]
        return [(at + i, 2) for at in frames if at > 0 for i in (2, 5, 7)] or [(4, 2)]
    if data[:4] in (b"II*\0", b"MM\0*"):
        (at,) = struct.unpack_from("<I" if data[:1] == b"I" else ">I", data.ljust(8, b"\0"), 4)
        return [(at + 2 + 12 * entry + i, n) for entry in range(14) for i, n in ((0, 2), (2, 2), (4, 4), (8, 4))]
    return [(at, 4) for at in range(0, min(len(data), 64), 4)]


DAMAGES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    flip, overwrite, damage_head, cut_off, cut_out, repeat, insert, swap, blow_up, blow_up, splice,
)  # fmt: skip


def damaged(seed: int, number: int) -> tuple[str, bytes]:
    """(what it was, file): one damaged file, the same for the same seed and number."""
    chance = random.Random(f"{seed} {number}")
    name, file = chance.choice(pictures())
    data = bytearray(file)
    for damage in chance.choices(DAMAGES, k=chance.choice((1, 1, 1, 2, 3))):
        if data:
            damage(data, chance)
    # damage to a PNG that its checksums give away is never decoded
    return name, with_checksums(bytes(data)) if chance.random() < 0.8 else bytes(data)


def with_checksums(data: bytes) -> bytes:
    """A PNG with the checksums of its chunks put right; any other file as it is."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    fixed, at = bytearray(data), 8
    while at + 12 <= len(fixed):
        (length,) = struct.unpack_from(">I", fixed, at)
        end = at + 8 + length
        if end + 4 > len(fixed):
            break
        struct.pack_into(">I", fixed, end, zlib.crc32(fixed[at + 4 : end]))
        at = end + 4
    return bytes(fixed)


# ---- a run


def outcome(data: bytes) -> str:
    """How a file ended: "picture", "refused", or what is wrong with its end."""
    try:
        picture = images.open_image(data)
        picture.load()
    except UserError as error:
        sentence = str(error)
        one = sentence.endswith(".") and ". " not in sentence and "\n" not in sentence
        return "refused" if one and len(sentence) <= LONGEST_SENTENCE else f"not one sentence: {sentence!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]!r}"
    width, height = picture.size
    return "picture" if picture.mode == "RGB" and 0 < width * height <= images.MAX_PIXELS else f"no picture: {picture}"


def peak() -> int:
    """The most memory that this process has had, in bytes; `getrusage` would tell its parent's where that had more."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def work(seed: int, start: int, stop: int) -> None:
    """Open the files start … stop - 1, and say the outcome of each; the process ends at one that takes too much."""
    warnings.simplefilter("ignore")
    pictures()
    before = peak()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for number in range(start, stop):
        _, data = damaged(seed, number)
        # without handlers both signals end the process, even amid a decoder
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
        end = outcome(data)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        taken = peak() - before
        if taken > MEMORY:
            print(f"took {taken // 1024**2:,} MB of memory", flush=True)
            return
        print(end, flush=True)


def run(files: int, seed: int, keep: Path, patch: str = "", say: Callable[[str], None] = print) -> Counter[str]:
    """Count the outcomes of `files` damaged files; those that fail go into the folder `keep`.

    `patch` is run in the worker first: a way to see that what is broken is found.
    """
    ends: Counter[str] = Counter()
    number, began = 0, time.monotonic()
    while number < files:
        code = f"{patch}\nfrom tests.fuzz_images import work\nwork({seed}, {number}, {files})"
        worker = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert worker.stdout is not None
        opened = 0
        with worker:
            for line in worker.stdout:
                tell(line.rstrip("\n"), number, seed, keep, ends, say)
                number, opened = number + 1, opened + 1
                if number % 1000 == 0:
                    say(f"{number:,} files in {time.monotonic() - began:,.0f} s: {dict(ends)}")
        if worker.returncode < 0:
            tell(f"the process ended by {signal.Signals(-worker.returncode).name}", number, seed, keep, ends, say)
            number += 1
        elif worker.returncode > 0 or not opened:
            raise RuntimeError(f"the worker could not go on with file {number} (exit {worker.returncode})")
    return ends


def tell(end: str, number: int, seed: int, keep: Path, ends: Counter[str], say: Callable[[str], None]) -> None:
    if end in ("picture", "refused"):
        ends[end] += 1
        return
    ends["failed"] += 1
    name, data = damaged(seed, number)
    keep.mkdir(parents=True, exist_ok=True)
    path = keep / f"{seed}-{number}"
    path.write_bytes(data)
    say(f"seed {seed}, file {number} (from {name}): {end}; kept as {path}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Open damaged picture files; each must be a picture or one sentence.")
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=ROOT / ".pytest_cache" / "fuzz", help="where files go that fail")
    options = parser.parse_args()
    ends = run(options.files, options.seed, options.keep)
    print(
        f"seed {options.seed}: {options.files:,} files from {len(pictures())} pictures: "
        f"{ends['picture']:,} opened, {ends['refused']:,} refused, {ends['failed']:,} failed"
    )
    return 1 if ends["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
