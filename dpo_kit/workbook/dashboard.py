"""DPO training watched from a notebook: live panels, a Stop button, and a warning where something looks wrong.

Training runs in its own thread and only passes rows on. The kernel's event loop checks for new rows twice a second and
draws them. So only one thread uses the widgets, and a click is handled while a step is running. When training ends, a
static figure replaces the live panels, so that a saved notebook holds no widget state. Where no person has the
notebook open, only the static figure is shown.
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import plotly.graph_objects as go
import traitlets
from IPython.display import HTML, display

from dpo_kit.machine import someone_is_there
from dpo_kit.training.trainers import TrainingStopped
from dpo_kit.views.answer_browser import shown
from dpo_kit.views.training import LIVE, column, dashboard_figure
from dpo_kit.workbook.cells import in_one_line
from dpo_kit.workbook.show import show
from dpo_kit.workbook.training_warnings import TrainingWarning, warnings_in

REDRAW = 0.5  # the least seconds between two updates; longer where drawing would take over a fifth of the time


class Dashboard:
    """The rows so far of one run of `total_steps` steps. `stop` is the event that its button sets.

    `total_steps` may be a fraction, where epochs are: it is rounded up, as the trainer does. A row that arrives again,
    because the run was resumed, replaces the earlier one.
    """

    def __init__(self, total_steps: float, stop: threading.Event | None = None, batch_size: int | None = None):
        self.total_steps, self.stop, self.batch_size = math.ceil(total_steps), stop or threading.Event(), batch_size
        self._rows: dict[tuple[float, frozenset[str]], dict] = {}
        self._arrivals: deque[tuple[float, float]] = deque(maxlen=30)  # (seconds, step): the speed of late, not of all

    def on_row(self, row: dict) -> None:
        """Keep a row of the log. The thread that trains calls this, so it draws nothing."""
        self._rows[row["step"], frozenset(row)] = row  # one step has rows of several kinds, such as training and KL
        self._arrivals.append((time.monotonic(), row["step"]))

    @property
    def rows(self) -> list[dict]:
        """The rows so far, each once."""
        return list(self._rows.values())

    def warnings(self) -> list[TrainingWarning]:
        """The warnings about the rows so far."""
        return warnings_in(self.rows, self.batch_size)

    def progress(self) -> str:
        """The step that was reached, the margin, the speed, and about how long the rest will take."""
        step, parts = self.step(), [f"step {self.step()} of {self.total_steps}"]
        for key, form in (("rewards/margins", "margin {:.2f}"), ("pairs_per_s", "{:.1f} pairs/s")):
            parts += [form.format(value) for _, value in column(self.rows, key)[-1:]]
        (then, before), (now, after) = (self._arrivals[0], self._arrivals[-1]) if self._arrivals else ((0, 0), (0, 0))
        if after > before and step < self.total_steps:
            parts.append(_duration((self.total_steps - step) * (now - then) / (after - before)) + " left")
        return " · ".join(parts)

    def step(self) -> int:
        """The latest step that has a row."""
        return max((row["step"] for row in self.rows), default=0)

    async def watch(self, train: Callable[..., Any], *args: Any, callbacks: Sequence[Any] = (), **options: Any) -> Any:
        """Run a training in a thread with this dashboard as its callback and its `stop`; returns what it returns.

        `train(*args, callbacks=..., stop=..., **options)` is called, as `train_dpo` takes them. Interrupting the cell
        stops the training with a checkpoint, as the button does. Raises what `train` raises, after the static figure
        was shown; a TrainingStopped is shown in one line.
        """
        live = Live(self) if someone_is_there() else None
        heard = {"callbacks": [self, *callbacks], "stop": self.stop}
        training = asyncio.create_task(asyncio.to_thread(train, *args, **heard, **options))
        pause = REDRAW
        while not training.done():
            try:
                await asyncio.wait({training}, timeout=pause)
            except asyncio.CancelledError:
                self.stop.set()  # an interrupt of the cell: keep waiting, because the thread still saves a checkpoint
            began = time.monotonic()
            if live:
                live.draw()
            pause = max(REDRAW, 4 * (time.monotonic() - began))  # so drawing takes at most a fifth of the time
        error = training.exception()
        above = str(error or self.progress())
        show_training(self.rows, self.batch_size, above, live.close() if live else display)
        if isinstance(error, TrainingStopped):  # the reader asked for it: no traceback, and the cells below wait
            raise in_one_line(TrainingStopped(f"{error}: run this cell again")) from None
        return training.result()


class Controls(anywidget.AnyWidget):
    """Progress and the Stop button. A screen reader reads `announced` at each change, so it changes seldom."""

    _esm = Path(__file__).with_name("dashboard.js")
    _css = Path(__file__).with_name("dashboard.css")
    scene = traitlets.Dict().tag(sync=True)

    def __init__(self, run: Dashboard):
        super().__init__()
        self.run = run
        self.on_msg(self._heard)
        self.draw()

    def draw(self) -> None:
        """Send the state of the run to the page."""
        run = self.run
        stopping = run.stop.is_set()
        tenth = run.total_steps // 10 or 1  # a screen reader would otherwise read every step
        announced = ["Stopping after the step under way, with a checkpoint." if stopping else "Training."]
        announced += [f"Step {run.step() // tenth * tenth} of {run.total_steps}."]
        announced += [f"Warning: {warning.text}" for warning in run.warnings()]
        at = {"step": run.step(), "total": run.total_steps, "progress": run.progress()}
        self.scene = {**at, "stopping": stopping, "announced": " ".join(announced)}

    def _heard(self, _widget: Any, message: dict[str, Any], _buffers: Any) -> None:
        if message == {"do": "stop"}:
            self.run.stop.set()
            self.draw()


class Live:
    """The dashboard on the screen, until `close`. Only the kernel's loop calls it."""

    def __init__(self, run: Dashboard):
        self.run, self._drawn = run, -1
        self.controls, self.warnings, self.samples = Controls(run), ipywidgets.HTML(), ipywidgets.HTML()
        self.figure = go.FigureWidget(dashboard_figure([], LIVE))
        self.box = ipywidgets.VBox([self.controls, self.warnings, self.figure, self.samples])
        self._shown = display(self.box, display_id=True)

    def draw(self) -> None:
        """Bring everything up to date, if the log has grown."""
        rows = self.run.rows
        if len(rows) == self._drawn:  # sending the figure again would only slow down training
            return
        self._drawn = len(rows)
        self.controls.draw()
        self.warnings.value = warnings_html(self.run.warnings())
        self.samples.value = samples_html(rows)
        with self.figure.batch_update():
            for mine, new in zip(self.figure.data, dashboard_figure(rows, LIVE).data, strict=True):
                mine.update(x=new.x, y=new.y, customdata=new.customdata)

    def close(self) -> Callable[[Any], None]:
        """Free the widgets; returns a function that displays something in their place."""
        for widget in (*self.box.children, self.box):
            widget.close()
        return self._shown.update


def show_training(rows: Sequence[dict], batch_size: int | None = None, above: str = "", put: Callable = display):
    """The static dashboard of a log, of a stock trainer's too (see `read_log`): warnings, figure, sample answers.

    The text `above` comes first; `put` displays it together with the warnings.
    """
    warnings = warnings_in(rows, batch_size)
    first = f"<p>{escape(above)}</p>" if above else ""
    put(HTML(first + (warnings_html(warnings) or "<p>There is nothing to warn of.</p>")))
    figure = dashboard_figure(rows)
    panels = ", ".join(note.text for note in figure.layout.annotations)
    show(figure, f"DPO training in panels: {panels}. {' '.join(warning.text for warning in warnings)}".strip())
    if samples := samples_html(rows):
        display(HTML(samples))


def warnings_html(warnings: Sequence[TrainingWarning]) -> str:
    """Each warning as a paragraph with its cause and a link to the section that explains it."""
    return "".join(
        f"<p><strong>⚠ {escape(w.kind.capitalize())}.</strong> {escape(w.text)} {escape(w.cause)} "
        f'<a href="{escape(w.link)}" target="_blank">Read on</a></p>'
        for w in warnings
    )


def samples_html(rows: Sequence[dict]) -> str:
    """The latest sample answers with their prompts, as text that cannot run."""
    latest = next((row for row in reversed(rows) if row.get("answers/samples")), None)
    if latest is None:
        return ""
    pairs = "".join(
        f"<li><b>Prompt</b>{shown(s['prompt'])}<b>Answer</b>{shown(s['answer'])}</li>"
        for s in latest["answers/samples"]
    )
    return f"<details open><summary>Sampled at step {latest['step']}</summary><ol>{pairs}</ol></details>"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
