"""Stopping on purpose: the step under way is finished, a checkpoint is sealed, and the run goes on another day."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import TrainerCallback

from dpo_kit.errors import DpoKitError


class TrainingStopped(DpoKitError):
    """Training ended before its last step because it was asked to; the message says where to go on from."""


class StopOnEvent(TrainerCallback):
    """Saves and stops at the end of the step in which `event` is set, from a button's thread or a signal."""

    def __init__(self, event: threading.Event):
        self.event = event

    def on_step_end(self, args, state, control, **kwargs):
        if self.event.is_set():
            control.should_save = control.should_training_stop = True


@contextmanager
def signals_set(event: threading.Event) -> Iterator[list[int]]:
    """For the length of the block SIGINT and SIGTERM set `event`; yields the list of those received.

    The second one interrupts at once. Only the main thread gets signals; in another the block changes nothing.
    """
    received: list[int] = []

    def note(number, frame):
        if received:
            raise KeyboardInterrupt
        received.append(number)
        event.set()

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def raise_stopped(received: list[int], message: str) -> None:
    """End as the asker expects: KeyboardInterrupt after SIGINT, exit code 143 after SIGTERM, else TrainingStopped."""
    if signal.SIGINT in received:
        raise KeyboardInterrupt(message)
    if signal.SIGTERM in received:
        print(message, file=sys.stderr)
        raise SystemExit(128 + signal.SIGTERM)
    raise TrainingStopped(message)
