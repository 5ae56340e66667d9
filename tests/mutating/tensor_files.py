"""Damaged safetensors files: the length, the header's JSON, what it says of each tensor, its metadata, the numbers, the
whole file."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path

ODD_VALUES = [
    "",
    " ",
    "nan",
    "inf",
    "-1",
    "0",
    "1e999",
    "9" * 400,
    "null",
    "preferred\n",
    "\x1b[31mred",
    "ü" * 50,
    "x" * 5000,
    "\ud83d\ude00",
    "{}",
]
ODD_JSON = [None, True, -1, 0.5, 10**30, "text", [], {}, [[]], {"a": []}]
ODD_NAMES = ["", " ", "NaN", ".", "..", "a" * 3000, "\n", "\x00", "ключ", "lora_down.weight", ".alpha", "__metadata__ "]
ODD_LENGTHS = [0, 1, 7, 100_000_001, 2**31, 2**32 + 8, 2**62, 2**63 - 1, 2**64 - 1]
DTYPES = [
    "F64",
    "F32",
    "F16",
    "BF16",
    "I64",
    "I8",
    "U8",
    "BOOL",
    "F8_E4M3",
    "F8_E5M2",
    "F4",
    "C64",
    "f32",
    "",
    "STRING",
]
PAIR_KEYS = [
    *(
        "member",
        "format_version",
        "pair_id",
        "base_name",
        "base_sha256",
        "prediction_type",
        "null_prompt",
        "null_prompt_prob",
        "alpha",
    ),
    *("guidance_scale", "beta", "resolution", "step", "config_sha256", "dataset_fingerprint", "no_such_key"),
]


def split(content: bytes) -> tuple[dict, bytes]:
    """Header and numbers of a whole file."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: dict | bytes, numbers: bytes, length: int | None = None) -> bytes:
    """A file, its stated length true unless given."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + numbers


def damaged(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """What was done, and the damaged bytes."""
    mutation = rng.choice(MUTATIONS)
    return mutation.__name__.replace("_", " "), mutation(rng, content)


def write_damaged(rng: random.Random, content: bytes, path: Path) -> str:
    """Puts a damaged file, or what is no file at all, in place; returns what was done."""
    if rng.random() < 0.06:
        return rng.choice(PLACES)(path)
    mutation, damage = damaged(rng, content)
    path.write_bytes(damage)
    return mutation


def other_length(rng: random.Random, content: bytes) -> bytes:
    header, numbers = split(content)
    true = len(json.dumps(header).encode())
    return joined(header, numbers, rng.choice([*ODD_LENGTHS, true - 1, true + 1, rng.randrange(2 * true)]))


def damaged_json(rng: random.Random, content: bytes) -> bytes:
    header, numbers = split(content)
    text = bytearray(json.dumps(header).encode())
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(text))
        text[place : place + rng.randint(0, 3)] = rng.choice(
            [b"", b"{", b"}", b'"', b",", b"\xff", b"\x00", b"[", b"1", b"\\u0000"]
        )
    return joined(bytes(text), numbers)


def header_of_another_form(rng: random.Random, content: bytes) -> bytes:
    _, numbers = split(content)
    return joined(
        rng.choice(
            [b"", b"{}", b"[]", b"null", b"1", b'"a"', b"[" * 50_000, b'{"a":' * 50_000, b" " * 1000, b"\xff\xfe{}"]
        ),
        numbers,
    )


def tensor_entry(rng: random.Random, content: bytes) -> bytes:
    header, numbers = split(content)
    entry = header[rng.choice(tensors(header))]
    which = rng.choice(["dtype", "shape", "data_offsets"])
    if rng.random() < 0.2:
        del entry[which]
    elif rng.random() < 0.3:
        entry[which] = rng.choice(ODD_JSON)
    elif which == "dtype":
        entry[which] = rng.choice(DTYPES)
    else:
        entry[which] = [
            rng.choice([*entry[which], 0, 1, -1, 2**31, 2**63, 2**64, len(numbers), 0.5, "1", None])
            for _ in entry[which]
        ]
    return joined(header, numbers)


def shape_of_equal_size(rng: random.Random, content: bytes) -> bytes:
    """What a reader of headers alone cannot tell from a whole file."""
    header, numbers = split(content)
    for key in rng.sample(tensors(header), min(3, len(tensors(header)))):
        shape = header[key]["shape"]
        size = 1
        for side in shape:
            size *= side
        header[key]["shape"] = rng.choice([[size], [1, *shape], [*shape, 1], shape[::-1], [1, size], [size, 1, 1, 1]])
    return joined(header, numbers)


def overlapping_tensors(rng: random.Random, content: bytes) -> bytes:
    header, numbers = split(content)
    first, second = (header[key] for key in rng.choices(tensors(header), k=2))
    first["data_offsets"] = second["data_offsets"]
    return joined(header, numbers)


def renamed_tensor(rng: random.Random, content: bytes) -> bytes:
    header, numbers = split(content)
    key = rng.choice(tensors(header))
    name = rng.choice([*ODD_NAMES, key + ".weight", key[1:], key.upper(), rng.choice(tensors(header))])
    return joined({(name if old == key else old): value for old, value in header.items()}, numbers)


def lost_tensors(rng: random.Random, content: bytes) -> bytes:
    """A whole file with fewer tensors: down to none."""
    header, numbers = split(content)
    kept, place, blocks = {}, 0, []
    share = rng.choice([0.0, 0.1, 0.5, 0.9, 0.99])
    for key, entry in header.items():
        if key == "__metadata__":
            kept[key] = entry
        elif rng.random() < share:
            begin, end = entry["data_offsets"]
            kept[key] = {**entry, "data_offsets": [place, place + end - begin]}
            blocks.append(numbers[begin:end])
            place += end - begin
    return joined(kept, b"".join(blocks))


def name_twice(rng: random.Random, content: bytes) -> bytes:
    header, numbers = split(content)
    key = rng.choice(tensors(header))
    text = json.dumps(header)
    return joined((text[:-1] + f", {json.dumps(key)}: {json.dumps(header[key])}}}").encode(), numbers)


def odd_metadata(rng: random.Random, content: bytes) -> bytes:
    header, numbers = split(content)
    metadata = header.setdefault("__metadata__", {})
    for _ in range(rng.randint(1, 3)):
        key = f"chats.{rng.choice(PAIR_KEYS)}"
        if rng.random() < 0.25:
            metadata.pop(key, None)
        else:
            metadata[key] = rng.choice(ODD_VALUES)
    return joined(header, numbers)


def foreign_metadata(rng: random.Random, content: bytes) -> bytes:
    header, numbers = split(content)
    odd = [
        *ODD_JSON,
        {"chats.member": 1},
        {"chats.member": None},
        {"": ""},
        {"config": "{"},
        {"_quantization_metadata": "[]"},
        {"a": "b\x1b[2J"},
    ]
    header["__metadata__"] = rng.choice(odd)
    return joined(header, numbers)


def cut_off(rng: random.Random, content: bytes) -> bytes:
    header_end = len(content) - len(split(content)[1])
    return content[
        : rng.choice([0, 1, 7, 8, 9, rng.randrange(header_end), rng.randrange(len(content)), len(content) - 1])
    ]


def bytes_after_the_end(rng: random.Random, content: bytes) -> bytes:
    return content + rng.randbytes(rng.choice([1, 8, 4096]))


def odd_numbers(rng: random.Random, content: bytes) -> bytes:
    """NaN, infinite and random bits among the numbers; the header holds."""
    _, numbers = split(content)
    changed = bytearray(numbers)
    for _ in range(rng.randint(1, 20)):
        place = rng.randrange(0, len(changed), 4)
        changed[place : place + 4] = rng.choice(
            [b"\xff\xff\xff\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f", rng.randbytes(4)]
        )
    return content[: len(content) - len(numbers)] + bytes(changed[: len(numbers)])


def another_file(rng: random.Random, content: bytes) -> bytes:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456789\n"
    page = b"<!DOCTYPE html><html><body>Not found</body></html>"
    return rng.choice(
        [
            pickle.dumps({"weight": [1.0]}),
            b"PK\x03\x04" + rng.randbytes(400),
            b"GGUF\x03\x00\x00\x00",
            page,
            pointer,
            rng.randbytes(4000),
        ]
    )


def tensors(header: dict) -> list[str]:
    return [key for key in header if key != "__metadata__"]


MUTATIONS: list[Callable[[random.Random, bytes], bytes]] = [
    *(
        other_length,
        damaged_json,
        header_of_another_form,
        tensor_entry,
        tensor_entry,
        shape_of_equal_size,
        overlapping_tensors,
    ),
    *(
        renamed_tensor,
        lost_tensors,
        name_twice,
        odd_metadata,
        odd_metadata,
        foreign_metadata,
        cut_off,
        bytes_after_the_end,
    ),
    *(odd_numbers, another_file),
]


def folder_in_its_place(path: Path) -> str:
    path.mkdir()
    return "folder in its place"


def link_to_nowhere(path: Path) -> str:
    path.symlink_to(path.parent / "nowhere")
    return "link to nowhere"


def link_to_itself(path: Path) -> str:
    path.symlink_to(path)
    return "link to itself"


def pipe_in_its_place(path: Path) -> str:
    os.mkfifo(path)
    return "pipe in its place"


PLACES: list[Callable[[Path], str]] = [folder_in_its_place, link_to_nowhere, link_to_itself, pipe_in_its_place]
