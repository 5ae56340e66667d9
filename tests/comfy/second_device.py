"""A second device that computes on the CPU and refuses to mix with the first, as a graphics card would.

Its tensors are torch's own of the CPU under another class, which says that they are elsewhere. A call that is given
tensors of both devices raises what torch raises.
"""

import functools
import threading
from typing import ClassVar

import comfy.model_management
import torch

SECOND = torch.device("privateuseone", 0)
CPU = torch.device("cpu")
FREE = 4 * 2**30
# What makes tensors from a device's name alone.
FACTORIES = (
    "arange",
    "empty",
    "empty_like",
    "full",
    "linspace",
    "ones",
    "rand",
    "randn",
    "tensor",
    "zeros",
    "zeros_like",
)
LAYERS = ("conv2d", "linear")


class SecondTensor(torch.Tensor):
    """On the second device; ``threads`` have run a network's layers there, by name."""

    threads: ClassVar[set[str]] = set()

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function == torch.Tensor.device.__get__:
            return SECOND
        if function is torch._has_compatible_shallow_copy_type:
            return False
        if function is torch.Tensor.copy_:
            with torch._C.DisableTorchFunctionSubclass():
                return _as(args[0].__class__, function(*map(_plain, args), **kwargs))
        if function in (torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.item):
            with torch._C.DisableTorchFunctionSubclass():
                return function(_plain(args[0]), *args[1:], **kwargs)
        if getattr(function, "__name__", "") in LAYERS:
            cls.threads.add(threading.current_thread().name)
        given = list(_tensors((args, kwargs)))
        if any(not isinstance(each, SecondTensor) and each.ndim > 0 for each in given):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, cpu and second:0!"
            )
        if kwargs.get("device") == SECOND:
            kwargs["device"] = CPU
        with torch._C.DisableTorchFunctionSubclass():
            return _mapped(
                functools.partial(_as, SecondTensor), function(*_mapped(_plain, args), **_mapped(_plain, kwargs))
            )


def _plain(value):
    return value.as_subclass(torch.Tensor) if isinstance(value, SecondTensor) else value


def _as(kind, value):
    return value.as_subclass(kind) if isinstance(value, torch.Tensor) and not isinstance(value, kind) else value


def _mapped(function, value):
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, (list, tuple)):
        made = [_mapped(function, each) for each in value]
        return type(value)(*made) if hasattr(value, "_fields") else type(value)(made)
    if isinstance(value, dict):
        return {name: _mapped(function, each) for name, each in value.items()}
    return value


def _tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def make_second_device(monkeypatch) -> list[torch.device]:
    """Makes tensors go there and come back; the devices whose free memory ComfyUI has asked for."""
    asked_for, to = [], torch.Tensor.to
    SecondTensor.threads.clear()

    def moved(tensor, *args, **kwargs):
        asked = [*args, *kwargs.values()]
        devices = [each.device if isinstance(each, torch.Tensor) else each for each in asked]
        devices = [torch.device(each) for each in devices if isinstance(each, (torch.device, str))]
        away = isinstance(tensor, SecondTensor)
        to_second = SECOND in devices or (away and not devices)
        plain = [CPU if each == SECOND else _plain(each) for each in args]
        named = {name: CPU if each == SECOND else _plain(each) for name, each in kwargs.items()}
        if away != to_second:
            named["copy"] = True  # a device has memory of its own
        with torch._C.DisableTorchFunctionSubclass():
            made = to(_plain(tensor), *plain, **named)
        return made.as_subclass(SecondTensor) if to_second else made

    def on_devices(factory):
        @functools.wraps(factory)
        def make(*args, device=None, **kwargs):
            if device is None or torch.device(device) != SECOND:
                return factory(*args, **({} if device is None else {"device": device}), **kwargs)
            return factory(*map(_plain, args), device=CPU, **kwargs).as_subclass(SecondTensor)

        return make

    monkeypatch.setattr(torch.Tensor, "to", moved)
    for name in FACTORIES:
        monkeypatch.setattr(torch, name, on_devices(getattr(torch, name)))
    for name in ("get_free_memory", "get_total_memory"):
        monkeypatch.setattr(comfy.model_management, name, _memory(getattr(comfy.model_management, name), asked_for))
    return asked_for


def _memory(real, asked_for):
    def memory(dev=None, torch_total_too=False, torch_free_too=False):
        asked_for.append(dev)
        if dev != SECOND:
            return real(dev, torch_total_too or torch_free_too)
        return (FREE, FREE) if torch_total_too or torch_free_too else FREE

    return memory
