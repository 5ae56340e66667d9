"""Data sets as people have them, and what one is wherever it lies."""

import json

import pyarrow
from pictures import png
from pyarrow import parquet

PAIRS = [("prompt a", png(0), png(100)), ("prompt b", png(1), png(101))]


def contents(dataset):
    return [(sample.prompt, sample.chosen.read(), sample.rejected.read()) for sample in dataset.samples]


def prompts(dataset):
    return [sample.prompt for sample in dataset.samples]


def kinds(dataset):
    return sorted(problem.kind for problem in dataset.problems)


def report(dataset):
    return "\n".join(dataset.report())


def write_parquet(path, rows, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(rows, **columns), path)
    return path


def structs(*seeds):
    return [{"bytes": png(seed), "path": None} for seed in seeds]


def write_rows(folder, *rows):
    """metadata.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder
