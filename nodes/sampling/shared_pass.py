"""The passes of one network for two members: its layers add the difference to the rows that are the dispreferred's.

A layer's own ``forward`` is replaced, not hooked: torch.compile guards what ``forward`` is, and does not look at hooks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from .branches import RegroupedError
from .difference_model import Difference, Layer, LayerDifference

ALL_ROWS = (slice(None),)


class SharedPass:
    """One network during one run.

    Args:
        difference: what to add.
        batch: pictures in a run, which is the rows that each entry has in a pass.
    """

    def __init__(self, difference: Difference, batch: int):
        self.difference, self.batch = difference, batch
        # The dispreferred's, in the pass under way; None where there is none.
        self.rows: tuple[slice, ...] | None = None
        self.total: int | None = None  # rows of the pass under way, where only some are the dispreferred's
        self.regrouped = False  # a layer of the pass under way had another number of rows
        self.outside: str | None = None  # a layer that was run while no pass was under way
        self.passes = 0  # how many had rows of the dispreferred
        self.layers: list[tuple[LayerDifference, Layer]] = []
        # By layer, our forward, and what was there.
        self.replaced: dict[Layer, tuple[Callable[..., Tensor], dict]] = {}

    def attach(self, layers: Sequence[Layer]) -> None:
        """Makes the layers add the difference; they are in its order."""
        self.layers = list(zip(self.difference, layers, strict=True))
        for layer, _ in self.layers:
            layer.reached = False
        self._replace()

    def _replace(self) -> None:
        """Puts our forward in place, where it is not: a node that puts back its own, in the middle of a run, takes
        ours away."""
        for layer, module in self.layers:
            there = vars(module).get("forward")
            if module not in self.replaced or there is not self.replaced[module][0]:
                forward = self._adding(layer, module, module.forward)
                self.replaced[module] = forward, {} if there is None else {"forward": there}
                module.forward = forward

    def detach(self) -> None:
        for module, (forward, own) in self.replaced.items():
            if vars(module).get("forward") is forward:
                del module.forward
                module.__dict__.update(own)
        self.replaced.clear()

    def unreached(self) -> list[str]:
        """Layers that no pass went through: something computes past them."""
        return [layer.layer_name for layer in self.difference if not layer.reached] if self.passes else []

    @contextmanager
    def under_way(self, negative: Sequence[bool], rows: int) -> Iterator[None]:
        """A pass of the network.

        Args:
            negative: for each entry, in order, whether it is the dispreferred's.
            rows: of the pass; each entry has ``batch``.

        Raises:
            RegroupedError: when the pass is of both members, and not all layers have the rows in this order.
        """
        self._replace()
        self.rows, self.total = self._rows(negative, rows)
        self.regrouped = False
        self.passes += any(negative)
        try:
            yield
        finally:
            self.rows, self.total = None, None
        if self.regrouped:
            raise RegroupedError

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Within it, what layers compute is the dispreferred's, without a pass."""
        self.rows = ALL_ROWS
        try:
            yield
        finally:
            self.rows = None

    def _rows(self, negative: Sequence[bool], rows: int) -> tuple[tuple[slice, ...], int | None]:
        if not any(negative):
            return (), None
        if all(negative):
            return ALL_ROWS, None
        if rows != self.batch * len(negative):
            raise RegroupedError
        chosen = []
        for is_negative, group in itertools.groupby(range(len(negative)), key=negative.__getitem__):
            if is_negative:
                entries = list(group)
                chosen.append(slice(entries[0] * self.batch, (entries[-1] + 1) * self.batch))
        return tuple(chosen), rows

    def _adding(self, layer: LayerDifference, module: Layer, own: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """A layer's forward with the difference. What it notes are plain attributes: of a set, torch.compile would
        guard what is in it."""

        def forward(inputs: Tensor, *args: object, **kwargs: object) -> Tensor:
            output = own(inputs, *args, **kwargs)
            if self.rows is None:
                self.outside = layer.layer_name
                return output
            layer.reached = True
            if self.total is not None and inputs.shape[0] != self.total:
                self.regrouped = True
                return output
            for rows in self.rows:
                layer.add(module, output, inputs, rows)
            return output

        return forward
