"""What of a tensor is this process's. Shards are rows: dimension 0, cut as `torch.chunk` cuts it.

A tensor that is in no shards is whole in each process, and all of it is its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard


def own(tensor: Tensor) -> Tensor:
    """This process's part, sharing its memory."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def own_rows(value: Tensor, like: Tensor) -> Tensor:
    """Of a value, whole or in the same shards as ``like``, what :func:`own` gives of ``like``."""
    if isinstance(value, DTensor) or not isinstance(like, DTensor):
        return own(value)
    first = _first_row(like)
    return value[first : first + len(own(like))]


def first_index(tensor: Tensor) -> int:
    """The index, in the whole flattened tensor, of the first number of this process's part."""
    return _first_row(tensor) * tensor[:1].numel() if isinstance(tensor, DTensor) else 0


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, in every process, which must all ask; a part that rests on the CPU is gathered on the device."""
    tensor = tensor.detach()
    if not isinstance(tensor, DTensor):
        return tensor
    local = tensor.to_local().to(tensor.device_mesh.device_type)
    return in_shards(local, tensor).full_tensor().to(tensor.device)


def in_shards(part: Tensor, like: DTensor) -> DTensor:
    """A part of this process as what it is a part of, which is of the shape of ``like``."""
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


@torch.no_grad()
def fill(tensor: Tensor, value: Tensor) -> None:
    """Puts a value, whole or in the same shards, into a tensor."""
    own(tensor).copy_(own_rows(value, tensor))


def gathered(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """All of each tensor, on the CPU, in the processes that ``keep`` them; all processes are to call it."""
    wholes = ((name, whole(tensor)) for name, tensor in tensors.items())
    return {name: value.cpu() for name, value in wholes if keep}


@torch.no_grad()
def clip_gradients(parameters: Sequence[nn.Parameter], limit: float) -> float:
    """The norm of all gradients as one vector, which is cut to ``limit``: torch's `clip_grad_norm_`, of parameters in
    shards too."""
    first = parameters[0]
    if not isinstance(first, DTensor):
        return torch.nn.utils.clip_grad_norm_(parameters, limit).item()
    gradients = [own(parameter.grad) for parameter in parameters if parameter.grad is not None]
    # Not torch's own sum over shards: parts that rest on the CPU would be summed there, which NCCL does not do.
    squares = torch.nn.utils.get_total_norm(gradients).double().square().to(first.device_mesh.device_type)
    torch.distributed.all_reduce(squares, group=first.device_mesh.get_group(_shard_dimension(first)))
    norm = squares.sqrt().item()
    factor = min(1.0, limit / (norm + 1e-6))
    for gradient in gradients if factor < 1 else ():
        gradient.mul_(factor)
    return norm


def _first_row(tensor: DTensor) -> int:
    count, index = _shard_count_and_index(tensor)
    rows = len(tensor)
    return min(index * -(-rows // count), rows)


def _shard_count_and_index(tensor: DTensor) -> tuple[int, int]:
    dimension = _shard_dimension(tensor)
    return tensor.device_mesh.size(dimension), tensor.device_mesh.get_local_rank(dimension)


def _shard_dimension(tensor: DTensor) -> int:
    """Of the mesh: the one that rows are cut over."""
    return next(index for index, placement in enumerate(tensor.placements) if isinstance(placement, Shard))
