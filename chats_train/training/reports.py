"""What a run leaves for its maker to look at: metrics.jsonl, loss.png, and TensorBoard's files where that is
installed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from chats.files import replacing, write_text

from ..support.errors import UserError
from ..support.jsonl import read_rows

METRICS_FILE, PLOT_FILE = "metrics.jsonl", "loss.png"
# Of each metric, one curve of the steps and one of the held-out pairs.
PLOTTED = ("loss", "implicit_accuracy", "delta_chosen", "delta_rejected")
HELD_OUT = "validation_"
# A plot takes a fifth of a second of a core: as much as a small model's step.
PLOT_SECONDS = 30.0


class Reports:
    """The metrics of a run, one line of JSON a step; as a context manager, with a plot of all of them at its end.

    Args:
        folder: the run's.
        step: the step that the run goes on from; later lines, of steps that a kill undid, are taken out.
        tensorboard: write its files too.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool):
        self.folder, self.path = folder, folder / METRICS_FILE
        self.rows = [row for row in read_rows(self.path) if row["step"] <= step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))
        self.writer = _tensorboard_writer(folder) if tensorboard else None
        self._looked_at = time.monotonic()
        self._unplotted = False

    def __enter__(self) -> Reports:
        return self

    def __exit__(self, *_: object) -> None:
        if self._unplotted:
            self.plot()
        if self.writer is not None:
            self.writer.close()

    def add(self, row: dict[str, Any]) -> None:
        """One line; ``row`` has `step` and numbers by name."""
        self.rows.append(row)
        self._unplotted = True
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.writer is not None:
            for name, value in row.items():
                if name != "step":
                    self.writer.add_scalar(name, value, row["step"])

    def plot_now_and_then(self) -> None:
        """Draws loss.png, unless the last one is of a moment ago."""
        if time.monotonic() - self._looked_at > PLOT_SECONDS:
            self.plot()

    def plot(self) -> None:
        """Draws loss.png."""
        self._looked_at, self._unplotted = time.monotonic(), False
        from matplotlib.figure import Figure

        names = [name for name in PLOTTED if any(name in row for row in self.rows)]
        if not names:
            return
        # ``layout="constrained"`` would draw everything twice.
        figure = Figure(figsize=(5 * len(names), 3.5))
        figure.subplots_adjust(left=0.16 / len(names), right=1 - 0.02 / len(names), bottom=0.15, wspace=0.3)
        for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            for key, label in ((name, "training"), (HELD_OUT + name, "held out")):
                points = [(row["step"], row[key]) for row in self.rows if key in row]
                if points:
                    axes.plot(*zip(*points, strict=True), label=label, alpha=0.5 if key == name else 1.0)
            axes.set_title(name)
            axes.set_xlabel("optimizer step")
            axes.legend()
        with replacing(self.folder / PLOT_FILE) as temporary:
            figure.savefig(temporary, format="png", dpi=100)


def _tensorboard_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "`report_to` is tensorboard, which is not installed; `pip install tensorboard`, or set none"
        ) from error
    return SummaryWriter(str(folder / "tensorboard"))
