"""Pictures as people have them: more than 8 bits a level, several in one file, and what is no picture at all."""

import hashlib
import json
import struct
import zlib

import numpy
import pytest
import torch
from pairs_on_disk import kinds, prompts, report
from pictures import encoded, picture, write_folders
from PIL import Image, features
from test_cache import Pooling

from chats.buckets import Bucket
from chats_train.data.images import picture_suffixes, pixels
from chats_train.encodings.cache import CachedEncodings, _digest, fill_cache
from chats_train.encodings.shards import ShardStore

# The top row and the other one, each from black to white.
SHARES = numpy.stack([numpy.linspace(0, 1, 64), numpy.linspace(0, 1, 64) ** 2])
SIXTEEN = numpy.rint(SHARES * 65535).astype("u2")


def levels(data, width=64, height=2):
    """What training sees, in levels of 8 bits; gray."""
    found = ((pixels(data, Bucket(width, height)) + 1) * 127.5).numpy()
    assert numpy.array_equal(found[0], found[1])
    assert numpy.array_equal(found[0], found[2])
    return found[0]


def tiff(array, order="<", bits=None, **tags):
    """A gray TIFF; ``tags`` are photometric (1: black is zero), smallest and largest (floats)."""
    content = array.astype(array.dtype.newbyteorder(order)).tobytes() if isinstance(array, numpy.ndarray) else array
    rows, columns = SHARES.shape
    form = {"u": 1, "i": 2, "f": 3}[array.dtype.kind] if isinstance(array, numpy.ndarray) else 1
    bits = bits or 8 * array.dtype.itemsize
    entries = [(256, columns), (257, rows), (258, bits), (259, 1), (262, tags.get("photometric", 1))]
    entries += [(273, 8), (277, 1), (278, rows), (279, len(content)), (339, form)]
    directory = [struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in entries]
    directory += [
        struct.pack(f"{order}HHIf", tag, 11, 1, tags[name])
        for tag, name in ((340, "smallest"), (341, "largest"))
        if name in tags
    ]
    header = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8 + len(content))
    return header + content + struct.pack(f"{order}H", len(directory)) + b"".join(directory) + bytes(4)


def packed(values):
    """Whole numbers of 12 bits."""
    bits = "".join(f"{value:012b}" for value in values.ravel())
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def png_of(rows, colour, transparent=None):
    """A PNG of 16 bits a level, from rows of levels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], 16, colour, 0, 0, 0))
    key = b"" if transparent is None else chunk(b"tRNS", struct.pack(">H", transparent))
    body = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + header + key + chunk(b"IDAT", body) + chunk(b"IEND", b"")


DEEP = {
    "PNG": encoded(Image.fromarray(SIXTEEN)),
    "PGM": b"P5\n64 2\n65535\n" + SIXTEEN.astype(">u2").tobytes(),
    "JPEG 2000": encoded(Image.fromarray(SIXTEEN), "JPEG2000"),
    "TIFF": tiff(SIXTEEN),
    "TIFF, other bytes first": tiff(SIXTEEN, ">"),
    "TIFF, white is zero": tiff(65535 - SIXTEEN, photometric=0),
    "TIFF, 12 bits": tiff(packed(numpy.rint(SHARES * 4095).astype(int)), bits=12),
    "TIFF, floats": tiff(SHARES.astype("f4")),
    "TIFF, floats, other bytes first": tiff(SHARES.astype("f4"), ">"),
    "TIFF, floats of a stated range": tiff((SHARES * 300 - 100).astype("f4"), smallest=-100.0, largest=200.0),
    "TIFF, 32 bits of a stated range": tiff(numpy.rint(SHARES * 1e6).astype("i4"), smallest=0.0, largest=1e6),
    "PFM": b"Pf\n64 2\n-1.0\n" + SHARES[::-1].astype("<f4").tobytes(),
}


@pytest.mark.parametrize("kind", DEEP)
def test_more_than_8_bits_are_brought_to_8_by_their_range(kind):
    assert numpy.abs(levels(DEEP[kind]) - SHARES * 255).max() <= 0.54


def test_colours_of_16_bits_are_brought_to_8():
    """By Pillow itself, which takes the upper 8."""
    colours = png_of(numpy.stack([SIXTEEN] * 3, axis=-1), colour=2)
    assert numpy.abs(levels(colours) - SHARES * 255).max() <= 1.01


def test_a_turned_picture_of_16_bits_is_turned():
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = levels(encoded(Image.fromarray(SIXTEEN), exif=exif))
    assert numpy.abs(turned[::-1, ::-1] - SHARES * 255).max() <= 0.54


def test_a_transparent_level_of_16_bits_lies_over_white():
    found = levels(png_of(SIXTEEN, colour=0, transparent=int(SIXTEEN[0, 20])))
    assert found[0, 20] == 255
    assert numpy.abs(found - SHARES * 255)[SIXTEEN[0, 20] != SIXTEEN].max() <= 0.54


HOLES = numpy.where(SHARES > 0.5, numpy.nan, SHARES).astype("f4")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiff((SHARES * 3).astype("f4")), "F levels from 0 to 3"),
        (tiff((SHARES * 3).astype("f4"), smallest=0.0, largest=2.0), "F levels from 0 to 3"),
        (tiff(HOLES), "F levels from nan"),
        (tiff(HOLES, smallest=0.0, largest=1.0), "F levels from nan"),
        (tiff((SHARES * 65535).astype("i4")), "I levels from 0 to 65535"),
        (tiff((SHARES * 4095 - 5).astype("i2")), "I levels from -5 to 4090"),
    ],
    ids=["bright", "brighter than stated", "not a number", "not a number within", "32 bits", "signed"],
)
def test_levels_of_an_unknown_range_are_listed(data, reason, open_pairs, tmp_path):
    folder = write_folders(tmp_path / "pairs")
    (folder / "rejected" / "a.png").write_bytes(data)
    dataset = open_pairs(folder)
    assert prompts(dataset) == ["prompt b"]
    assert f"a: unknown range (rejected: {reason}" in report(dataset)
    assert "save it with 8 or 16 bits a level" in report(dataset)


# Several in one file.


def several(kind, count=3):
    return encoded(picture(0), kind, save_all=True, append_images=[picture(seed) for seed in range(1, count)])


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF", "TIFF"])
def test_an_animation_or_pages_are_listed(kind, open_pairs, tmp_path):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    folder = write_folders(tmp_path / "pairs")
    (folder / "chosen" / "a.png").write_bytes(several(kind))
    dataset = open_pairs(folder)
    assert prompts(dataset) == ["prompt b"]
    problem = f"a: several pictures (chosen: 3 in one {kind}; save the one that is meant as a file of its own)"
    assert problem in report(dataset)
    (folder / "chosen" / "a.png").write_bytes(several(kind, 1))
    assert prompts(open_pairs(folder)) == ["prompt a", "prompt b"], "one picture is a picture"


def test_a_phone_s_picture_with_its_depth_map_is_one(open_pairs, tmp_path):
    folder = write_folders(tmp_path / "pairs", "a")
    (folder / "chosen" / "a.png").write_bytes(several("MPO"))
    assert open_pairs(folder).problems == ()


# No pictures.


def test_suffixes_of_pictures():
    before = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
    assert before | {".jfif", ".jpe", ".apng", ".jp2", ".tga", ".ppm", ".mpo", ".psd", ".ico"} <= picture_suffixes()
    assert not picture_suffixes() & {".pdf", ".eps", ".ps", ".mpg", ".mpeg", ".h5", ".hdf", ".wmf", ".txt", ".caption"}


def test_no_other_program_is_started_for_a_document(monkeypatch):
    """Pillow hands EPS to Ghostscript, whatever its file is called."""
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("started"))
    document = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    with pytest.raises(OSError, match="not an image"):
        pixels(document, Bucket(8, 8))


# What version 0.1.0 kept of such pictures.


def test_verdicts_of_version_0_1_0_are_not_believed(open_pairs, tmp_path):
    folder = write_folders(tmp_path / "pairs")
    image = folder / "chosen" / "a.png"
    image.write_bytes(several("GIF"))
    stored = {hashlib.sha256(file.read_bytes()).hexdigest(): [48, 32] for file in folder.glob("*/*.png")}
    (tmp_path / "run" / "cache").mkdir(parents=True)
    (tmp_path / "run" / "cache" / "images.json").write_text(json.dumps(stored))
    assert kinds(open_pairs(folder)) == ["several pictures"]
    assert kinds(open_pairs(folder)) == ["several pictures"], "from the new verdicts too"


@pytest.mark.parametrize("deep", [True, False])
def test_latents_of_version_0_1_0_are_read_unless_it_saw_another_picture(deep, open_pairs, tmp_path):
    """Its key was of the image's hash and the bucket; it saw a picture of 16 bits as nearly white."""
    folder = write_folders(tmp_path / "pairs", "a")
    if deep:
        (folder / "chosen" / "a.png").write_bytes(encoded(Image.fromarray(numpy.full((32, 48), 32768, "u2"))))
    (sample,) = open_pairs(folder).samples
    cache = tmp_path / "cache"
    encoders, before = Pooling(), torch.full((3, 4, 4), 7.0)
    key = _digest("image", "f", sample.chosen.sha256, f"{sample.bucket.width}x{sample.bucket.height}")
    store = ShardStore(cache)
    store.add({key: {"latents": before}})
    store.flush()
    fill_cache(cache, [sample], encoders, progress=False)
    found = CachedEncodings(cache, "f").pair(sample).chosen
    assert torch.equal(found, before) != deep
    assert encoders.images == (2 if deep else 1)
    if deep:
        assert found.abs().max() < 0.01, "middle gray"
