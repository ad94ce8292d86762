"""Files made to harm: each is refused in one sentence, before it takes memory, time or control."""

import io
import json
import pickle
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save

from mlmamba import weights
from mlmamba.config import ConnectorConfig, LanguageConfig, MLMambaConfig, VisionConfig
from mlmamba.hub import CHECKPOINTS
from mlmamba.model import MLMamba

if sys.platform != "linux":
    pytest.skip("memory and time of a process are limited as Linux does", allow_module_level=True)

from tests import fuzz_images

ROOT = Path(__file__).resolve().parent.parent
MB = 1024**2
GROWTH = 256  # MB that any refusal may take; the sizes that the files state would take gigabytes
# Does something to each path, with a limit of memory; prints how each ended and how much the process has grown.
ATTEMPTS = """
import json, resource, sys, warnings
from pathlib import Path
import mlmamba
from mlmamba import images
warnings.simplefilter("ignore")
images.register_heif()
def peak():  # `getrusage` would tell the parent's where that had more
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024
before = None
for path in sys.argv[2:]:
    try:
        mlmamba.load(path, device="cpu") if sys.argv[1] == "load" else images.open_image(path).load()
        end = ["fine", ""]
    except BaseException as error:
        end = [type(error).__name__, str(error)]
    if before is None:  # the first is sound: what loads and opens has been imported now
        before = peak()
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (2 << 30),) * 2)
    print(json.dumps([path, *end, peak() - before]), flush=True)
"""


def attempt(what: str, sound: Path, paths: list[Path]) -> dict[str, tuple[str, str]]:
    """{file: (exception or "fine", its sentence)}, of a process that must not grow, after one `sound` path."""
    command = [sys.executable, "-c", ATTEMPTS, what, *map(str, (sound, *paths))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert done.returncode == 0 and len(rows) == len(paths) + 1, (rows[-1:], done.stderr[-2000:])
    assert rows[0][1] == "fine", rows[0]
    grown = {Path(path).name: growth for path, _, _, growth in rows}
    assert max(grown.values()) < GROWTH, grown
    return {Path(path).name: (end, sentence) for path, end, sentence, _ in rows[1:]}


def assert_refused(ends: dict[str, tuple[str, str]]) -> None:
    """Each with a UserError of one sentence."""
    for name, (end, sentence) in ends.items():
        assert end == "UserError", (name, end, sentence)
        assert sentence.endswith(".") and ". " not in sentence and "\n" not in sentence, (name, sentence)
        assert len(sentence) < 600, (name, sentence)


# ---- pictures


def test_damaged_files_are_pictures_or_one_sentence(tmp_path: Path) -> None:
    """`python -m tests.fuzz_images --files 10000` is the long run."""
    for name, data in fuzz_images.pictures():
        assert fuzz_images.outcome(data) == "picture", name
    said: list[str] = []
    ends = fuzz_images.run(400, seed=7, keep=tmp_path, say=said.append)
    assert ends["failed"] == 0, said
    assert ends["picture"] + ends["refused"] == 400
    assert min(ends["picture"], ends["refused"]) > 60, ends  # all of one kind would show little


@pytest.mark.parametrize(
    ("broken", "end"),
    [
        ("import ctypes; images.open_image = lambda data: ctypes.string_at(0)", "SIGSEGV"),
        ("fuzz_images.CPU_SECONDS = 1\ndef turn(data):\n  while True: pass\nimages.open_image = turn", "SIGPROF"),
        (
            "fuzz_images.MEMORY = 50 << 20; images.open_image = lambda data: Image.new('RGB', (6000, 6000), 'white')",
            "took",
        ),
        ("images.open_image = lambda data: 1 / 0", "ZeroDivisionError"),
    ],
)
def test_the_fuzzer_sees_what_is_broken(tmp_path: Path, broken: str, end: str) -> None:
    said: list[str] = []
    patch = f"from PIL import Image\nfrom mlmamba import images\nfrom tests import fuzz_images\n{broken}"
    assert fuzz_images.run(1, seed=3, keep=tmp_path, patch=patch, say=said.append) == {"failed": 1}
    assert "seed 3, file 0" in said[0] and end in said[0], said
    assert (tmp_path / "3-0").read_bytes() == fuzz_images.damaged(3, 0)[1]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@cache
def zeros(megabytes: int) -> bytes:
    """So many MB of nothing, as zlib packs them: a thousandth of that."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(MB)) for _ in range(megabytes)) + packer.flush()


def png(width: int, height: int, pixels: bytes, before: bytes = b"", depth: int = 8, colour: int = 2) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def small_png(before: bytes) -> bytes:
    return png(8, 8, zlib.compress(bytes(8 * 25)), before)


def saved(kind: str, size: tuple[int, int] = (8, 8), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, format=kind, **options)
    return buffer.getvalue()


def with_tags(n: int, size: int, width: int = 8) -> bytes:
    """A TIFF of n tags that all say the same `size` bytes."""
    usual = {256: (3, 1, width), 257: (3, 1, 8), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 273: (4, 1, 8)}
    usual |= {278: (3, 1, 8), 279: (4, 1, 64)}
    tags = usual | {tag: (7, size, 8) for tag in range(1000, 1000 + n)}
    rows = b"".join(struct.pack("<HHII", tag, *rest) for tag, rest in sorted(tags.items()))
    return b"II*\0" + struct.pack("<I", 8 + size) + bytes(size) + struct.pack("<H", len(tags)) + rows + bytes(4)


def webp_canvas(width: int, height: int) -> bytes:
    """An animation whose one frame is small, and its canvas not."""
    frame = saved("WEBP", lossless=True)[12:]
    frame = frame[frame.index(b"VP8L") :]
    sides = [struct.pack("<I", side - 1)[:3] for side in (width, height)]
    place = bytes(6) + struct.pack("<I", 7)[:3] * 2 + bytes(4)
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + b"".join(sides)
    body += b"ANIM" + struct.pack("<IIH", 6, 0, 0) + b"ANMF" + struct.pack("<I", len(place + frame)) + place + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def gif(extensions: bytes = b"", size: int = 8, frame: int = 8) -> bytes:
    data = bytearray(saved("GIF"))
    data[6:10] = struct.pack("<HH", size, size)
    at = data.index(b",", 13)
    data[at + 5 : at + 9] = struct.pack("<HH", frame, frame)
    return bytes(data[:at]) + extensions + bytes(data[at:])


def jpeg_exif(exif: bytes) -> bytes:
    """In as many segments as it takes; readers put them together."""
    parts = [b"Exif\0\0" + exif[at : at + 60_000] for at in range(0, len(exif), 60_000)]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in parts)
    return b"\xff\xd8" + segments + saved("JPEG")[20:]  # without JFIF's density, so that EXIF is asked for it


def jpeg_scans(n: int) -> bytes:
    data = saved("JPEG", (256, 256), progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * n + b"\xff\xd9"


def ico(picture: bytes) -> bytes:
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(picture), 22) + picture


def resized(data: bytes, *numbers: tuple[int, bytes]) -> bytes:
    changed = bytearray(data)
    for at, number in numbers:
        changed[at : at + len(number)] = number
    return bytes(changed)


MANY = struct.pack("<I", 2**31 - 1)
LONG_TAGS = (4000, 300_000)  # 1.2 GB in 350 KB
REFUSED: dict[str, Callable[[], bytes]] = {
    "png-sides": lambda: png(2**31 - 1, 2**31 - 1, b""),
    "png-50-kilobytes": lambda: png(20_000, 20_000, zeros(48), depth=1, colour=3),
    "gif-screen": lambda: gif(size=65_535),
    "gif-frame": lambda: gif(frame=65_535),
    "webp-canvas": lambda: webp_canvas(65_000, 66_000),
    "webp-canvas-of-400-million": lambda: webp_canvas(20_000, 20_000),
    "bmp-sides": lambda: resized(saved("BMP"), (18, MANY), (22, MANY)),
    "bmp-upside-down": lambda: resized(saved("BMP"), (18, struct.pack("<i", 60_000)), (22, struct.pack("<i", -60_000))),
    "tiff-sides": lambda: with_tags(0, 64).replace(struct.pack("<HHII", 257, 3, 1, 8), b"\1\1\4\0\1\0\0\0" + MANY),
    "tiff-tags": lambda: with_tags(*LONG_TAGS),
    "png-text": lambda: small_png(b"".join(chunk(b"zTXt", b"k%d\0\0" % i + zeros(1)) for i in range(80))),
    "png-one-text": lambda: small_png(chunk(b"zTXt", b"k\0\0" + zeros(300))),
    "png-international-text": lambda: small_png(chunk(b"iTXt", b"k\0\1\0\0\0" + zeros(300))),
    "png-profile": lambda: small_png(chunk(b"iCCP", b"x\0\0" + zeros(300))),
    "png-chunks": lambda: small_png(chunk(b"abCd", b"") * 20_000),
    "gif-comments": lambda: gif(b"!\xfe\x01a\0" * 20_000),
    "gif-comment": lambda: gif(b"!\xfe" + (b"\xff" + b"a" * 255) * 6000 + b"\0"),
    "jpeg-scans": lambda: jpeg_scans(101),
    "ico-of-a-large-png": lambda: ico(png(12_000, 12_000, zeros(12_000 * 12_001 // MB + 1), colour=0)),
}  # fmt: skip
OPENED: dict[str, Callable[[], bytes]] = {
    "png-tags": lambda: small_png(chunk(b"eXIf", with_tags(*LONG_TAGS))),
    "jpeg-tags": lambda: jpeg_exif(with_tags(*LONG_TAGS)),
    "png-frames": lambda: small_png(chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
    "gif-frames": lambda: saved("GIF", save_all=True, append_images=[Image.new("L", (8, 8), i) for i in range(256)]),
    "jpeg-scans": lambda: jpeg_scans(80),
    "tiff-in-a-circle": lambda: with_tags(0, 64)[:-4] + struct.pack("<I", 72),
}


def test_bombs_are_refused_or_opened_in_little_memory(tmp_path: Path) -> None:
    (tmp_path / "sound.png").write_bytes(saved("PNG"))
    paths = {}
    for kind, files in (("refused", REFUSED), ("opened", OPENED)):
        for name, make in files.items():
            path = tmp_path / f"{kind}-{name}"
            path.write_bytes(make())
            assert path.stat().st_size < 3 * MB, path
            paths[path.name] = path
    ends = attempt("open", tmp_path / "sound.png", list(paths.values()))
    assert_refused({name: end for name, end in ends.items() if name.startswith("refused")})
    opened = {name: end for name, end in ends.items() if name.startswith("opened")}
    assert set(opened.values()) == {("fine", "")}, opened


# ---- checkpoints


CONFIG = MLMambaConfig(
    name="small",
    connector=ConnectorConfig(1450, 32, kinds=("bsm",), n_layers=1, d_state=8, head_dim=16, d_projector=32),
    language=LanguageConfig(32, n_layers=2, vocab_size=4096, d_state=8, head_dim=16),
    vision=VisionConfig(("efficientnet-lite0",), 96),
    vocab_words=4096,
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    weights.save(CONFIG, MLMamba(CONFIG).state_dict(), folder)
    (folder / weights.TOKENIZER).symlink_to(CHECKPOINTS / "tiny" / weights.TOKENIZER)
    return folder


def beside(sound: Path, folder: Path, file: str, content: bytes) -> Path:
    """A folder as the sound one, but for one file."""
    folder.mkdir()
    for name in (weights.CONFIG, weights.WEIGHTS, weights.TOKENIZER):
        if name != file:
            (folder / name).symlink_to((sound / name).resolve())
    (folder / file).write_bytes(content)
    return folder


BAD_VALUES = {"negative": -1, "zero": 0, "huge": 10**12, "text": "64", "list": [1, 2], "none": None, "true": True,
              "half": 0.5, "nested": {"a": {"b": []}}}  # fmt: skip
SIZES = [("connector", name) for name in ("d_features", "d_model", "n_layers", "d_state", "head_dim", "expand")]
SIZES += [("language", name) for name in ("d_model", "n_layers", "vocab_size", "d_state", "head_dim", "d_conv")]
BAD_FIELDS: list[tuple[str, str, Any]] = [
    ("connector", "d_projector", 10**9),
    ("connector", "n_layers", 5000),
    ("connector", "head_dim", 24),  # d_inner is 64
    ("connector", "d_model", 48),  # the language model's is 32
    ("connector", "kinds", []),
    ("connector", "kinds", ["bsm"] * 1000),
    ("connector", "kinds", ["../../etc"]),
    ("connector", "kinds", "bsm"),
    ("connector", "swiglu", "yes"),
    ("connector", "unknown", 1),
    ("language", "n_layers", 100_000),
    ("language", "head_dim", 24),
    ("language", "vocab_size", 2**20),  # possible, but not what the file holds
    ("language", "n_layers", 200),
    ("language", "norm_eps", float("nan")),
    ("language", "norm_eps", float("inf")),
    ("language", "norm_eps", -1.0),
    ("language", "kind", "mixtral"),
    ("vision", "towers", ["/etc/passwd"]),
    ("vision", "towers", ["../../checkpoints/tiny"]),
    ("vision", "towers", ["efficientnet-lite0"] * 1000),
    ("vision", "towers", [1]),
    ("vision", "towers", []),
    ("vision", "image_size", 0),
    ("vision", "image_size", 10**6),
    ("vision", "image_size", -320),
]
BAD_TEXTS = {
    "empty": b"",
    "list": b"[1, 2]",
    "number": b"7",
    "sections": b'{"name": "x", "connector": [], "language": {}, "vision": {}}',
    "brackets": b"[" * 100_000,
    "objects": b'{"name":' * 100_000,
    "digits": b'{"name": ' + b"9" * 10_000 + b"}",
    "binary": bytes(range(256)),
    "large": b'{"name": "' + b"x" * 2 * MB + b'"}',
    "long-field": b'{"' + b"x" * 100_000 + b'": 1, "connector": {}, "language": {}, "vision": {}}',
}


def test_absurd_configs_are_refused_before_they_are_built(sound: Path, tmp_path: Path) -> None:
    values = json.loads((sound / weights.CONFIG).read_text())
    texts = dict(BAD_TEXTS)
    cases = [(part, name, value) for part, name in SIZES for value in BAD_VALUES.values()] + BAD_FIELDS
    cases += [("", "vocab_words", 10**6), ("", "end_of_turn", -1), ("", "name", 5), ("", "vision", "towers")]
    for part, name, value in cases:
        changed = json.loads(json.dumps(values))
        (changed[part] if part else changed)[name] = value
        texts[f"{len(texts)}-{part}-{name}-{str(value)[:20].replace('/', '-')}"] = json.dumps(changed).encode()
    folders = [beside(sound, tmp_path / name, weights.CONFIG, text) for name, text in texts.items()]
    assert_refused(attempt("load", sound, folders))


def test_a_transformers_absurd_sizes_are_refused_before_they_are_built(sound: Path, tmp_path: Path) -> None:
    """137 GB by the config; `transformers` would make them before the file is looked at."""
    values = json.loads((sound / weights.CONFIG).read_text())
    large = {"kind": "llama", "d_model": 32768, "n_layers": 1, "n_heads": 4, "d_mlp": 64, "vocab_size": 2**20}
    values["language"], values["connector"]["d_model"] = large, 32768
    folder = beside(sound, tmp_path / "rival", weights.CONFIG, json.dumps(values).encode())
    assert_refused(attempt("load", sound, [folder]))


class Evil:
    def __reduce__(self) -> tuple:
        return (Path.touch, (ROOT / "evil-was-run",))


def safetensors(header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def split(file: bytes) -> tuple[dict[str, Any], bytes]:
    end = 8 + struct.unpack("<Q", file[:8])[0]
    return json.loads(file[8:end]), file[end:]


def bad_weights(whole: bytes) -> dict[str, bytes]:
    """Files that are not what the sound one is, each in one way."""
    header, data = split(whole)
    header.pop("__metadata__", None)
    (first, last), rest = list(header)[:2], dict(list(header.items())[2:])

    def entry(**changes: Any) -> bytes:
        return safetensors({**header, first: {**header[first], **changes}}, data)

    torch_file = io.BytesIO()
    torch.save({first: Evil()}, torch_file)
    tensors = {name: torch.zeros(value["shape"]) for name, value in header.items()}
    return {
        "pickle": pickle.dumps(Evil()),
        "torch": torch_file.getvalue(),
        "empty": b"",
        "short": b"\1\0\0",
        "lie-of-100-mb": safetensors(header, data, length=100_000_000),
        "lie-of-exabytes": safetensors(header, data, length=2**63),
        # it is read as long as the library's own limit of 100 MB allows
        "header-of-99-mb": safetensors(json.dumps(header).encode().ljust(99_000_000), data),
        "no-json": safetensors(b"\xff" * 64),
        "brackets": safetensors(b"[" * 100_000),
        "cut-off": whole[: len(whole) // 2],
        "longer": whole + bytes(64),
        "outside": entry(data_offsets=[2**40, 2**40 + 4]),
        "backwards": entry(data_offsets=header[first]["data_offsets"][::-1]),
        "negative": entry(data_offsets=[-4, 0]),
        "overlapping": safetensors({first: header[last], last: header[last], **rest}, data),
        "shape-without-bytes": entry(shape=[2**40, 2**20]),
        "shape-overflow": entry(shape=[2**63, 2**63, 2]),
        "kind-without-name": entry(dtype="F7"),
        "pair": safetensors(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},' * 2, b"\0"),
        "no-tensors": save({}),
        "too-few": save({name: tensor for name, tensor in tensors.items() if name != first}),
        "too-many": save({**tensors, "extra": torch.zeros(1)}),
        "other-shape": save({**tensors, first: torch.zeros(7)}),
        "whole-numbers": save({**tensors, first: tensors[first].to(torch.int64)}),
        "truths": save({**tensors, first: tensors[first].to(torch.bool)}),
        "complex": save({**tensors, first: tensors[first].to(torch.complex64)}),
    }


def test_bad_weights_are_refused(sound: Path, tmp_path: Path) -> None:
    files = bad_weights((sound / weights.WEIGHTS).read_bytes())
    folders = [beside(sound, tmp_path / name, weights.WEIGHTS, content) for name, content in files.items()]
    ends = attempt("load", sound, folders)
    assert not (ROOT / "evil-was-run").exists()
    assert_refused(ends)
    for name, (_, sentence) in ends.items():
        assert weights.WEIGHTS in sentence, (name, sentence)


def test_bad_weights_of_the_towers_are_refused(sound: Path, tmp_path: Path) -> None:
    header = {"towers.0.net.conv_stem.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    files = {
        "pickle": pickle.dumps(Evil()),
        "outside": safetensors(header, b""),
        "one": safetensors(header, bytes(4)),
        "header-of-99-mb": safetensors(json.dumps(header).encode().ljust(99_000_000), bytes(4)),
    }
    folders = [beside(sound, tmp_path / name, weights.VISION, content) for name, content in files.items()]
    ends = attempt("load", sound, folders)
    assert not (ROOT / "evil-was-run").exists()
    assert_refused(ends)


def test_a_bad_tokenizer_is_refused(sound: Path, tmp_path: Path) -> None:
    files = {"empty": b"", "pickle": pickle.dumps(Evil()), "brackets": b"[" * 100_000, "object": b'{"model": {}}'}
    folders = [beside(sound, tmp_path / name, weights.TOKENIZER, content) for name, content in files.items()]
    assert_refused(attempt("load", sound, folders))
    assert not (ROOT / "evil-was-run").exists()
