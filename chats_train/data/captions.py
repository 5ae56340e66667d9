"""Captions in files of their own, as people's tools write them beside the images of chosen/ and rejected/."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from .folder_tree import LeftOut, normalised, read_text
from .pairs import Problem

SIDES = ("chosen", "rejected")
# The ends of names that kohya-ss/sd-scripts and the tools around it write.
CAPTION_SUFFIXES = (".txt", ".caption")


class Captions:
    """The caption files of a data set in two folders.

    A pair's caption is the first that is there of ``a.txt``, ``a.caption``, ``a.png.txt`` and ``a.png.caption`` beside
    the chosen image, else beside the rejected one, else in the data set's own folder.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        # By side (the data set's own folder is "") and normalised name: the name as it is.
        self._names: dict[tuple[str, str], str] = {}
        self._used: set[tuple[str, str]] = set()
        # Whether a disk or a right failed, which another time it may not.
        self.failed = False

    def add(self, side: str, name: str) -> None:
        """A caption file; its name is relative to the side."""
        stem, suffix = os.path.splitext(name)
        key = side, normalised(stem) + suffix.lower()
        # A second one of that name, but for the case of its suffix, belongs to no pair.
        self._names[key if key not in self._names else (side, name)] = name

    def of(self, stem: str, images: Mapping[str, str], left_out: LeftOut) -> str | Problem | None:
        """A pair's caption, None where it has none, or why it cannot be read.

        Args:
            stem: the pair's name.
            images: the image's file of each side.
            left_out: gets further captions of the pair, where they say something else.
        """
        found = []
        for side in (*SIDES, ""):
            beside = [images[side]] if side else list(images.values())
            for name in dict.fromkeys([stem, *map(normalised, beside)]):
                found += [key for suffix in CAPTION_SUFFIXES if (key := (side, name + suffix)) in self._names]
        self._used |= set(found)
        texts = [self._read(stem, key) for key in found]
        for key, text in zip(found[1:], texts[1:], strict=True):
            if text != texts[0]:
                left_out.add("captions that differ from the one that was taken", self._shown(key))
        return texts[0] if texts else None

    def leave_out_the_rest(self, left_out: LeftOut) -> None:
        """Counts the files that no pair has asked for; for after the last one."""
        for key in sorted(self._names.keys() - self._used):
            left_out.add("captions of no pair", self._shown(key))

    def _shown(self, key: tuple[str, str]) -> str:
        return "/".join(filter(None, (key[0], self._names[key])))

    def _read(self, stem: str, key: tuple[str, str]) -> str | Problem:
        path = self._folder / self._shown(key)
        reason = "is not text in UTF-8; save it as such"
        # A pipe would wait for ever.
        if os.path.isfile(path):
            try:
                return read_text(path).strip()
            except OSError as error:
                self.failed = True
                reason = f"cannot be read: {error.strerror}"
            except UnicodeError:
                pass
        else:
            reason = "is no file"
        return Problem("unreadable caption", stem, f"{self._shown(key)} {reason}")
