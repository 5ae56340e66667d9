"""Damaged data sets, read by `check`, and their usable images as training reads them: tables of pairs, captions,
pictures, parquet."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from .cases import Case, command
from .workbench import Workbench

PAIRS = 4
ODD_TEXTS = ["", " ", "\x00", "\ud800", "a" * 100_000, "\u2028", "\x85", "‮", "\x1b[2J", "💥", "\ufeff", "\r\n"]
ODD_PATHS = [
    "",
    ".",
    "..",
    "/",
    "/dev/zero",
    "/dev/stdin",
    "/etc/passwd",
    "../../x.png",
    "a\x00b.png",
    "x" * 5000,
    "\ud800.png",
    "chosen",
    "~",
    "C:\\a.png",
]
ODD_CELLS = [None, 0, -1.5, True, [], {}, ["a"], {"bytes": None, "path": None}, {"a": 1}, 10**300]
ODD_LINES = [
    "[]",
    "null",
    "1",
    "{",
    "}",
    '"a"',
    "[" * 100_000,
    '{"a":' * 100_000,
    "{'a': 1}",
    "a,b,c",
    "\x00",
    "{} {}",
    '{"prompt": NaN}',
    "9" * 6000,
]


class DataSets:
    """Folders with metadata.jsonl, folders with captions, parquet."""

    name = "data sets"

    def __init__(self, workbench: Workbench):
        self.workbench = workbench

    def make(self, rng: random.Random, folder: Path) -> Case:
        data = folder / "data"
        mutate = rng.choice(MUTATIONS)
        place = mutate(rng, data) or data
        settings: dict = {"output_dir": str(folder / "run"), "cache_dir": str(folder / "cache")}
        # Now and then without buckets, or strict, or with columns named.
        settings |= rng.choice([{}, {}, {"enable_bucket": False}])
        source = {"path": str(place)} | rng.choice(
            [{}, {}, {}, {"strict": True}, {"max_pairs": 1}, {"columns": {"prompt": "caption"}}]
        )
        config = self.workbench.write_config(folder / "run.yaml", **settings, data=source)
        readings = {"check": lambda: command("check", str(config)), "pixels": lambda: read_pixels(config)}
        return Case(mutate.__name__.replace("_", " "), data, readings)


def read_pixels(config: Path) -> str | None:
    """The images of the pairs that were found usable, as the cache reads them."""
    from chats_train.data import open_dataset
    from chats_train.data.images import pixels
    from chats_train.settings.config_file import load_config
    from chats_train.support.errors import UserError

    try:
        samples = open_dataset(load_config(config), progress=False).samples
    except UserError as error:
        return str(error)
    for sample in samples:
        for image in (sample.chosen, sample.rejected):
            values = pixels(image.read(), sample.bucket)
            assert values.shape == (3, sample.bucket.height, sample.bucket.width), values.shape
            assert values.isfinite().all()
    return None


def picture(rng: random.Random, kind: str = "PNG", size: tuple[int, int] = (40, 32), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    channels = {"L": 1, "RGB": 3, "RGBA": 4, "CMYK": 4, "P": 1, "1": 1, "I;16": 2}[mode]
    content = (
        Image.frombytes(mode, size, rng.randbytes(size[0] * size[1] * channels))
        if mode != "1"
        else Image.new("1", size)
    )
    content.save(buffer, kind)
    return buffer.getvalue()


def metadata_folder(rng: random.Random, data: Path) -> list[str]:
    """A whole folder with metadata.jsonl; returns its lines."""
    data.mkdir()
    lines = []
    for index in range(PAIRS):
        names = {side: f"{side}_{index}.png" for side in ("chosen", "rejected")}
        for name in names.values():
            (data / name).write_bytes(picture(rng))
        lines.append(
            json.dumps({**{f"{side}_file_name": name for side, name in names.items()}, "prompt": f"picture {index}"})
        )
    (data / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return lines


def two_folders(rng: random.Random, data: Path) -> None:
    for side in ("chosen", "rejected"):
        (data / side).mkdir(parents=True)
        for index in range(PAIRS):
            (data / side / f"{index}.png").write_bytes(picture(rng))
            (data / side / f"{index}.txt").write_text(f"picture {index}")


def odd_lines(rng: random.Random, data: Path) -> None:
    lines = metadata_folder(rng, data)
    for _ in range(rng.randint(1, 3)):
        lines[rng.randrange(len(lines))] = rng.choice(ODD_LINES)
    (data / "metadata.jsonl").write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))


def odd_keys(rng: random.Random, data: Path) -> None:
    lines = metadata_folder(rng, data)
    for at in range(len(lines)) if rng.random() < 0.3 else [rng.randrange(len(lines))]:
        row = json.loads(lines[at])
        key = rng.choice(list(row))
        value = rng.choice([*ODD_CELLS, *(ODD_TEXTS if key == "prompt" else ODD_PATHS)])
        row[key] = value
        if rng.random() < 0.3:
            row[rng.choice(["caption", "Prompt", ""])] = row.pop(key)
        lines[at] = json.dumps(row, ensure_ascii=rng.random() < 0.5)
    (data / "metadata.jsonl").write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))


def odd_table_bytes(rng: random.Random, data: Path) -> None:
    metadata_folder(rng, data)
    path = data / "metadata.jsonl"
    content = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(content))
        content[at : at + rng.randint(0, 3)] = rng.choice(
            [b"\xff", b"\x00", b'"', b"\n", b"{", b"\r", b"\xef\xbb\xbf", rng.randbytes(3)]
        )
    kinds = [
        bytes(content),
        bytes(content[: rng.randrange(len(content))]),
        b"",
        b"\n\n",
        path.read_text().encode("utf-16"),
        path.read_bytes() * 3,
    ]
    path.write_bytes(rng.choice(kinds))


def odd_file(rng: random.Random, data: Path) -> None:
    """One image of one pair, in either kind of folder."""
    if rng.random() < 0.5:
        metadata_folder(rng, data)
        path = data / f"chosen_{rng.randrange(PAIRS)}.png"
    else:
        two_folders(rng, data)
        path = data / rng.choice(["chosen", "rejected"]) / f"{rng.randrange(PAIRS)}.png"
    path.unlink()
    rng.choice(FILES)(rng, path)


def odd_names(rng: random.Random, data: Path) -> None:
    """Two folders with names twice, hidden files, captions missing or no text, empty sides."""
    two_folders(rng, data)
    for _ in range(rng.randint(1, 4)):
        side, index = data / rng.choice(["chosen", "rejected"]), rng.randrange(PAIRS)
        change = rng.randrange(6)
        if change == 0:
            (side / f"{index}.jpg").write_bytes(picture(rng, "JPEG"))
        elif change == 1:
            (side / f"{index}.txt").unlink(missing_ok=True)
        elif change == 2:
            (side / f"{index}.txt").write_bytes(
                rng.choice([b"", b"\xff\xfe", b"\x00", b" \n", "a\u2028b\x1b[1m".encode(), b"x" * 10**6])
            )
        elif change == 3:
            (
                side / os.fsdecode(rng.choice([b"\xff\xfe.png", b".png", b"a b.png", "\u202e.png".encode(), b"..png"]))
            ).write_bytes(picture(rng))
        elif change == 4:
            for file in side.glob("*.png"):
                file.unlink()
        else:
            (side / "sub").mkdir(exist_ok=True)


def odd_parquet(rng: random.Random, data: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    data.mkdir()
    rows = rng.choice([0, 1, PAIRS, PAIRS])
    cells: dict[str, list] = {
        side: [{"bytes": picture(rng), "path": None} for _ in range(rows)] for side in ("chosen", "rejected")
    }
    cells["prompt"] = [f"picture {index}" for index in range(rows)]
    for _ in range(rng.randint(0, 2)):
        column = rng.choice(list(cells))
        odd = rng.choice(
            [
                None,
                1,
                2.5,
                "text",
                b"bytes",
                [1, 2],
                {"a": 1},
                {"bytes": b"x", "path": "y"},
                "/dev/zero",
                "../x.png",
                "a\x00b",
            ]
        )
        if rng.random() < 0.3:
            cells[rng.choice(["Chosen", "caption", "", "jpg_0"])] = cells.pop(column)
        else:
            cells[column] = [odd if rng.random() < 0.5 else None for _ in range(rows)]
    path = data / "part.parquet"
    pyarrow.parquet.write_table(pyarrow.table(cells), path)
    content = bytearray(path.read_bytes())
    change = rng.randrange(8)
    if change == 0:
        path.write_bytes(content[: rng.randrange(len(content))])
    elif change == 1:
        for _ in range(rng.randint(1, 8)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)
    elif change == 2:
        pyarrow.parquet.write_table(pyarrow.table({"other": [1, 2]}), data / "second.parquet")
    elif change == 3:
        path.write_bytes(rng.choice([b"", b"PAR1", b"PAR1PAR1", b"text", rng.randbytes(500)]))
    elif change == 4:
        (data / "folder.parquet").mkdir()


def odd_place(rng: random.Random, data: Path) -> Path:
    """What `data.path` names is no data set."""
    data.mkdir()
    (data / "empty").mkdir()
    (data / "notes.txt").write_text("x")
    (data / "named.parquet").mkdir()
    (data / "loop").symlink_to(data / "loop")
    (data / "metadata.jsonl").mkdir()
    (data / "half" / "chosen").mkdir(parents=True)
    places = [
        data / "empty",
        data / "notes.txt",
        data / "named.parquet",
        data / "loop",
        data,
        data / "half",
        data / "nowhere",
    ]
    return rng.choice([*places, Path("/dev/null"), Path("/proc/self/mem")])


def picture_of_another_kind(rng: random.Random, path: Path) -> None:
    kind, mode = rng.choice(
        [
            ("GIF", "P"),
            ("BMP", "RGB"),
            ("TIFF", "CMYK"),
            ("JPEG", "CMYK"),
            ("WEBP", "RGBA"),
            ("PNG", "I;16"),
            ("PNG", "P"),
            ("PNG", "1"),
        ]
    )
    size = rng.choice([(40, 32), (1, 1), (1, 3000), (3000, 1), (2, 2)])
    path.write_bytes(picture(rng, kind, size, mode))


def flipped_bits(rng: random.Random, path: Path) -> None:
    content = bytearray(picture(rng, rng.choice(["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])))
    for _ in range(rng.choice([1, 3, 30])):
        content[rng.randrange(min(len(content), rng.choice([40, 10**6])))] = rng.randrange(256)
    path.write_bytes(content)


def cut_off_picture(rng: random.Random, path: Path) -> None:
    content = picture(rng, rng.choice(["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"]))
    path.write_bytes(content[: rng.randrange(len(content))])


def no_picture(rng: random.Random, path: Path) -> None:
    path.write_bytes(
        rng.choice(
            [
                b"",
                b"<svg/>",
                b"%PDF-1.4",
                b"\x00" * 100,
                rng.randbytes(2000),
                b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nrun\n",
            ]
        )
    )


def huge_picture(rng: random.Random, path: Path) -> None:
    """A PNG of a few kilobytes or fewer that claims, or is, a picture of many pixels."""
    width, height = rng.choice(
        [(10**5, 10**5), (2**31 - 1, 2**31 - 1), (0, 0), (2**20, 1), (1, 2**20), (9000, 9000), (15000, 15000)]
    )
    row = b"\x00" + b"\xaa" * ((min(width, 15000) + 7) // 8)
    body = zlib.compress(row * (height if width * height < 3e8 else 1), 9)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    text = b"a\x00\x00" + zlib.compress(b"a" * rng.choice([10, 10**8]))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, (b"IHDR", b"zTXt", b"IDAT", b"IEND"), (header, text, body, b"")))
    )


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def no_file(rng: random.Random, path: Path) -> None:
    rng.choice(
        [
            Path.mkdir,
            os.mkfifo,
            lambda place: place.symlink_to(place),
            lambda place: place.symlink_to("/dev/zero"),
            lambda place: None,
        ]
    )(path)


FILES: list[Callable[[random.Random, Path], None]] = [
    *(picture_of_another_kind, flipped_bits, flipped_bits, cut_off_picture, no_picture, huge_picture, no_file),
]
MUTATIONS: list[Callable[[random.Random, Path], Path | None]] = [
    *(
        odd_lines,
        odd_keys,
        odd_keys,
        odd_table_bytes,
        odd_file,
        odd_file,
        odd_names,
        odd_parquet,
        odd_parquet,
        odd_place,
    ),
]
