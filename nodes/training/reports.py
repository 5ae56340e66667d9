"""What a run shows on its node while it trains: the bar, a line of text, the curve and beside it the last preview."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import comfy.utils
from server import PromptServer

from ..advice import show
from .curve import TOLD_RIGHT, Measure, beside, draw_curve
from .saved_run import SavedRun
from .session import Limits, Session

if TYPE_CHECKING:
    from PIL.Image import Image

# How often the node's text and picture change, in seconds.
SECONDS_BETWEEN_REPORTS = 1.0
# The longest side of what is shown, in pixels: of the curve alone, and with a preview beside it.
CURVE_SIZE, BOTH_SIZE = 512, 1024
# What the front end is told when a pair's files are there: web/training/ waits for it.
WRITTEN = "chats.pair_written"


class Reports:
    """Called after each step. Its texts are of two lines of some 34 characters: the node has room for no more.

    Args:
        node_id: of the node; None shows nothing.
        measure: what the held-out pairs say.
        made: what is made, in a word.
    """

    def __init__(
        self,
        limits: Limits,
        node_id: str | None,
        clock: Callable[[], float] = time.monotonic,
        measure: Measure = TOLD_RIGHT,
        made: str = "pair",
    ):
        self.limits, self.node_id, self.clock, self.measure, self.made = limits, node_id, clock, measure, made
        self.bar = comfy.utils.ProgressBar(limits.steps)
        self.started: tuple[float, int] | None = None
        self.shown_at = -SECONDS_BETWEEN_REPORTS
        self.preview: Image | None = None

    def __call__(self, history: list[dict[str, float]], preview: Image | None = None) -> None:
        now, step = self.clock(), len(history)
        # The first step of a go also warms up: it does not tell how long the others take.
        self.started = self.started or (now, step)
        self.preview = preview or self.preview
        picture = None
        if preview or now - self.shown_at >= SECONDS_BETWEEN_REPORTS or step == self.limits.steps:
            self.shown_at = now
            curve = draw_curve(history, self.limits.steps, self.measure)
            shown = beside(curve, self.preview) if self.preview else curve
            picture = ("JPEG", shown, BOTH_SIZE if self.preview else CURVE_SIZE)
            show(self._line(history, now), self.node_id)
        self.bar.update_absolute(step, self.limits.steps, picture)

    @contextmanager
    def encoding(self, pairs: int, saved: SavedRun | None) -> Iterator[None]:
        """Around what comes before the steps of a run, of which so much was saved."""
        show(f"encoding {pairs} pairs", self.node_id)
        with self._saying_where_it_stopped(lambda: saved):
            yield

    @contextmanager
    def training(self, session: Session) -> Iterator[None]:
        """Around a go."""
        saved = session.saved
        first = f"goes on from step {saved.step} of {self.limits.steps}" if saved else "checking the model's gradients"
        show(first, self.node_id)
        with self._saying_where_it_stopped(lambda: session.saved):
            yield

    @contextmanager
    def _saying_where_it_stopped(self, saved: Callable[[], SavedRun | None]) -> Iterator[None]:
        """By Cancel or by an error."""
        try:
            yield
        except BaseException:
            run = saved()
            where = f"at step {run.step} of {self.limits.steps}, queue to go on" if run else "before the first step"
            show(f"stopped {where}", self.node_id)
            raise

    def asking(self, pictures: int) -> None:
        """Before a teacher is asked about so many pictures, which takes a while."""
        show(f"asking the pair about {pictures} pictures", self.node_id)

    def written(self, name: str) -> None:
        """Tells the front end that there are new files to list."""
        server = getattr(PromptServer, "instance", None)
        if server is not None:
            server.send_sync(WRITTEN, {"name": name})

    def end(self, run: SavedRun, name: str, trained: bool) -> None:
        """Says where the run stands after a go."""
        steps, measured = self.limits.steps, self.measure.line(run.history)
        if run.step > steps:
            line = (
                f"`steps` is {steps}, and the run `{name}` is at step {run.step} already: nothing was "
                f"trained, and the {self.made} is that of step {run.step}; for one of {steps} steps choose "
                "another `name`"
            )
            logging.warning("CHATS: %s", line)
            show(f"⚠ {line}{measured}", self.node_id)
        elif run.step < steps:
            show(f"step {run.step} of {steps}, queue to go on{measured}", self.node_id)
        elif trained:
            show(f"step {run.step} of {steps}: done, in loras{measured}", self.node_id)
        else:
            show(f"done before, nothing to train{measured}", self.node_id)

    def _line(self, history: list[dict[str, float]], now: float) -> str:
        assert self.started is not None
        since, first = self.started
        step, left = len(history), ""
        if step > first:
            seconds = (now - since) / (step - first) * (self.limits.steps - step)
            if self.limits.seconds:
                seconds = min(seconds, since + self.limits.seconds - now)
            left = f", {_duration(max(0.0, seconds))} left"
        return f"step {step} of {self.limits.steps}{left}{self.measure.line(history)}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{round(seconds)} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
