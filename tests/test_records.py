"""The records of chats/ are values: one is shared by all who hold it, so that none may change it under another."""

import dataclasses
import importlib
import inspect

import pytest

MODULES = ["draws", "objective", "pair", "lowrank.truncation", "lowrank.factors", "taste.records", "taste.plan"]
RECORDS = [
    record
    for module in MODULES
    for _, record in inspect.getmembers(importlib.import_module(f"chats.{module}"), dataclasses.is_dataclass)
    if record.__module__ == f"chats.{module}"
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_a_record_cannot_be_changed(record):
    first = dataclasses.fields(record)[0].name
    made = object.__new__(record)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, first, None)
