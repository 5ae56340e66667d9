"""What a node put on the preferred model, made for the dispreferred: parts of the one network in it become the same
parts of the other.

A compiled module, a wrapper that closes over one, a bound method of a layer: handed on as they are, they would have the
dispreferred model answer with the preferred's weights.
"""

from __future__ import annotations

import copy
import functools
import gc
from collections.abc import Iterator
from types import CellType, FrameType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.samplers import CFGGuider

# Not looked into: what holds no module, and what nodes keep for its settings, not to compute with.
OPAQUE = (str, bytes, int, float, type(None), type, ModuleType, FrameType, torch.Tensor, ModelPatcher, CFGGuider)


class Transplant:
    """Replaces modules of ``donor``'s network by those of ``host``'s at the same path, wherever a value holds them.

    What holds none is returned as it is; one thing that is held in two places stays one.
    """

    def __init__(self, donor: ModelPatcher, host: ModelPatcher):
        ours, theirs = _modules(donor), _modules(host)
        self.counterparts = {id(module): theirs[path] for path, module in ours.items() if path in theirs}
        self.donors = {id(module): path for path, module in ours.items()}
        self.hosts = {id(module) for module in theirs.values()}
        self.made: dict[
            int, tuple[Any, Any]
        ] = {}  # by id, a value (so that the id stays its own) and what became of it

    def __call__(self, value: Any, name: str) -> Any:
        """The value for the host; ``name`` is what a user knows it by.

        Raises:
            ValueError: when a module of the donor is in it that cannot be replaced.
        """
        made = self._made(value, name)
        if path := self._found(made):
            raise ValueError(
                f"`{name}` was put on the model after CHATS Apply and holds `{path or 'the network'}` of the preferred "
                "model, which cannot be exchanged for the dispreferred's; put that node before CHATS Apply, on each of "
                "the two models"
            )
        return made

    def _found(self, value: Any) -> str | None:
        """The path of a module of the donor that a value holds, however deep; None where there is none."""
        seen, waiting = set(), [value]
        kept = []  # values made on the way, whose ids would be given away again
        while waiting:
            one = waiting.pop()
            if id(one) in seen or id(one) in self.hosts or isinstance(one, OPAQUE):
                continue
            if id(one) in self.donors:
                return self.donors[id(one)]
            seen.add(id(one))
            kept.append(one)
            waiting.extend(_held(one))
        return None

    def _made(self, value: Any, name: str) -> Any:
        if id(value) in self.made:
            return self.made[id(value)][1]
        if id(value) in self.counterparts:
            return self.counterparts[id(value)]
        if self._found(value) is None:
            return value
        made = self._copy(value, name)
        self.made[id(value)] = value, made
        return made

    def _copy(self, value: Any, name: str) -> Any:
        """A copy of a value that holds modules of the donor, with the host's in their place; the value itself where its
        kind cannot be copied."""

        def own(part: Any) -> Any:
            return self._made(part, name)

        if isinstance(value, MethodType):
            return MethodType(own(value.__func__), own(value.__self__))
        if isinstance(value, functools.partial):
            return type(value)(own(value.func), *map(own, value.args), **{k: own(v) for k, v in value.keywords.items()})
        if isinstance(value, FunctionType):
            return _function(value, own)
        if isinstance(value, dict):
            made = self._begun(value, copy.copy(value))
            made.update({key: own(item) for key, item in value.items()})
            return made
        if type(value) is list:
            made = self._begun(value, [])
            made.extend(map(own, value))
            return made
        if type(value) in (tuple, set, frozenset):
            return type(value)(map(own, value))
        if isinstance(value, torch.nn.Module) and (compiler := vars(value).get("dynamo_ctx")):
            return compiler(own(value._orig_mod))  # of what torch.compile returned; importing its class takes seconds
        try:
            made = object.__new__(type(value))
        except TypeError:  # a kind that is written in C
            return value
        if hasattr(value, "__dict__"):
            self._begun(value, made)
            vars(made).update({attribute: own(held) for attribute, held in vars(value).items()})
            return made
        return value

    def _begun(self, value: Any, made: Any) -> Any:
        """Notes a copy before it is filled: what it holds may hold it."""
        self.made[id(value)] = value, made
        return made


def _function(value: FunctionType, own: Any) -> FunctionType:
    """A copy of a function that closes over, or has as defaults, what ``own`` makes of it."""
    cells = tuple(map(_content, value.__closure__ or ()))
    closure = tuple(CellType() if cell is _EMPTY else CellType(own(cell)) for cell in cells)
    defaults = value.__defaults__ and tuple(map(own, value.__defaults__))
    made = FunctionType(value.__code__, value.__globals__, value.__name__, defaults, closure or None)
    made.__kwdefaults__ = value.__kwdefaults__ and {key: own(item) for key, item in value.__kwdefaults__.items()}
    made.__qualname__, made.__module__, made.__doc__ = value.__qualname__, value.__module__, value.__doc__
    vars(made).update({attribute: own(held) for attribute, held in vars(value).items()})
    return made


_EMPTY = object()


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing in it yet
        return _EMPTY


def _held(value: Any) -> Iterator[Any]:
    """What a value holds. Of a function not its globals, of an object of torch's nothing but a module's parts."""
    if isinstance(value, FunctionType):
        yield from map(_content, value.__closure__ or ())
        yield from (value.__defaults__, value.__kwdefaults__, vars(value))
    elif isinstance(value, torch.nn.Module):
        yield vars(value)
    elif not type(value).__module__.startswith("torch"):
        yield from gc.get_referents(value)


def _modules(model: ModelPatcher) -> dict[str, torch.nn.Module]:
    """The network's own modules by path, without what object patches have put in their place."""
    modules = dict(model.model.named_modules())
    for name, own in model.object_patches_backup.items():
        if isinstance(own, torch.nn.Module):
            modules.update(own.named_modules(prefix=name))
    return modules
