"""TRL's trainers with what they would let pass in silence made loud, and with checkpoints that are sealed.

`Careful` goes before a TRL trainer in the order of inheritance and changes nothing of what is computed. It stops at
the first loss, gradient or margin that is not finite, before the optimizer can write it into the weights; it holds the
reference to what it said at the start; and it goes on from a verified checkpoint exactly where that one was made.
"""

import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from trl import SFTTrainer

from dpo_kit.errors import DpoKitError
from dpo_kit.machine import peak_memory_mb
from dpo_kit.training.checkpoints import Checkpoints, manifest
from dpo_kit.training.fast import FastDPOTrainer
from dpo_kit.training.interruption import StopOnEvent, raise_stopped, signals_set
from dpo_kit.training.metrics_log import MetricsLog

LOG = "log.jsonl"
PROBE_ROWS = 8
SAME = 1e-5  # nats between two log-prob sums of one process: the same numbers, in the same order
ELSEWHERE = 0.5  # nats between machines, which round differently, in bf16 by tenths; the weights are compared by hash


class Careful:
    """What DPO and SFT share. `checkpoints`, `metrics_log` and `row_names` (one a data row) are set after building."""

    sides: ClassVar[int] = 1  # rows of a batch for each row of the data
    unit: ClassVar[str] = "rows_per_s"
    checkpoints: Checkpoints
    metrics_log: MetricsLog
    row_names: Sequence[str]
    _seconds, _rows = 0.0, 0

    def run(self, stop: threading.Event | None = None) -> None:
        """Train to the last step, from the newest checkpoint that verifies where there is one.

        Losses, weights and log are those of a run that was never interrupted, bit for bit on the CPU.
        `stop`, SIGINT and SIGTERM end it after the step under way, with a checkpoint: see `raise_stopped`.
        """
        stop = stop or threading.Event()
        self.add_callback(StopOnEvent(stop))
        self._reference = self.reference_logps()
        resumed = self.checkpoints.newest()
        if resumed:
            self._restore(resumed)
            if manifest(resumed)["step"] == manifest(resumed)["steps"]:  # killed between its last step and its end
                self._load_from_checkpoint(str(resumed))
                return
        with signals_set(stop) as received:
            self.train(resume_from_checkpoint=str(resumed) if resumed else None)
        if stop.is_set() and self.state.global_step < self.state.max_steps:
            where = f"step {self.state.global_step} of {self.state.max_steps}"
            raise_stopped(received, f"stopped at {where}; run the same again to go on from its checkpoint")

    def reference_logps(self) -> list[float]:
        """What the reference says of a fixed probe batch: summed log-probs. Empty where there is no reference."""
        return []

    def _restore(self, checkpoint: Path) -> None:
        sealed = manifest(checkpoint)
        self.metrics_log.restore((checkpoint / LOG).read_bytes())
        self._total_train_tokens = sealed["tokens"]
        self._compare(sealed["reference_logps"], "when the checkpoint was made and now", ELSEWHERE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._compare(self.reference_logps(), "in the checkpoint and at the start")

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._compare(self.reference_logps(), f"at step {self.state.global_step} and at the start")
        about = {
            "steps": self.state.max_steps,
            "tokens": self._total_train_tokens,
            "reference_logps": self._reference,
        }

        def write() -> None:
            super(Careful, self)._save_checkpoint(model, trial)
            log = self.checkpoints.writing / f"checkpoint-{self.state.global_step}" / LOG
            log.write_bytes(self.metrics_log.path.read_bytes())

        self.checkpoints.save(self.state.global_step, about, write)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.checkpoints.writing)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL writes a card at every save; an adapter's card is written once, when it is done."""

    def _compare(self, found: list[float], when: str, tolerance: float = SAME) -> None:
        distances = [abs(a - b) for a, b in zip(found, self._reference, strict=True)]
        if not all(distance <= tolerance for distance in distances):  # a NaN is no agreement either
            raise DpoKitError(
                f"the reference changed: {when} its log-probs on fixed rows differ by {max(distances):.2g} nats; "
                "rewards and margins mean nothing against a reference that moves: train from the SFT adapter anew"
            )

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """TRL's step, timed and looked at before the optimizer uses it. Raises DpoKitError where it is not finite."""
        started = time.perf_counter()
        loss = super().training_step(model, inputs, num_items_in_batch)
        norm = _gradient_norm(self.model)
        margin = self._metrics["train"].get("rewards/margins", [0.0])[-1]
        if not all(map(math.isfinite, (loss.item(), norm, margin))):
            self._stop_at_non_finite(inputs, loss.item(), norm, margin)
        self._seconds += time.perf_counter() - started
        self._rows += len(inputs["input_ids"]) // self.sides
        return loss

    def _stop_at_non_finite(self, inputs: dict[str, Any], loss: float, norm: float, margin: float) -> None:
        rate, done = self._get_learning_rate(), self.state.global_step
        self.state.global_step += 1
        self.log({"loss": loss, "grad_norm": norm, "learning_rate": rate})
        rows = self._offending(inputs) or [f"none alone, together {', '.join(self._names(inputs))}"]
        raise DpoKitError(
            f"step {done + 1}: loss {loss:g}, gradient norm {norm:g}, margin {margin:g}; nothing was learnt from it. "
            f"Offending rows: {', '.join(rows)}. Look at these rows and at the last steps of {self.metrics_log.path}; "
            f"then try a lower learning rate (now {rate:g}), or float32 in place of bfloat16. "
            "Run the same again to go on from the newest checkpoint"
        )

    def _offending(self, inputs: dict[str, Any]) -> list[str]:
        """The names of the rows whose own loss or gradient is not finite, each tried alone."""
        offending = []
        for i, name in enumerate(self._names(inputs)):
            self.model.zero_grad()
            loss = self.compute_loss(self.model, self._prepare_inputs(self._row(inputs, i)))
            loss.backward()
            if not (loss.isfinite().item() and math.isfinite(_gradient_norm(self.model))):
                offending.append(name)
        return offending

    def _row(self, inputs: dict[str, Any], i: int) -> dict[str, Tensor]:
        """One data row of a batch, all its sides."""
        count = len(inputs["input_ids"]) // self.sides  # reference log-probs are one a data row, ids one a side
        tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        return {name: v[i::count] if v.ndim == 2 else v[i : i + 1] for name, v in tensors.items()}

    def _names(self, inputs: dict[str, Any]) -> list[str]:
        """The names of a batch's rows, found by their tokens: TRL drops every other column on the way here."""
        rows = zip(self.train_dataset, self.row_names, strict=True)
        known = {_first_row(self.data_collator([row])): name for row, name in rows}
        return [known[_first_row(self._row(inputs, i))] for i in range(len(inputs["input_ids"]) // self.sides)]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add speed and memory to a step's row. Speed is over forward and backward, not over saving and measuring."""
        if "loss" in logs and self._rows:
            logs |= {self.unit: self._rows / self._seconds, "memory_mb": peak_memory_mb()}
            self._seconds, self._rows = 0.0, 0
        super().log(logs, start_time)


class CarefulSft(Careful, SFTTrainer):
    """TRL's SFTTrainer, careful."""


class CarefulDpo(Careful, FastDPOTrainer):
    """TRL's DPOTrainer on the fast path, careful. It also logs log-ratios, log pi - log pi_ref: unscaled rewards."""

    sides = 2
    unit = "pairs_per_s"

    @property
    def probed(self) -> range:
        """The rows of the data whose log-probs are held on to."""
        return range(min(PROBE_ROWS, len(self.train_dataset)))

    def reference_logps(self) -> list[float]:
        """Of the first rows of the data: chosen, then rejected."""
        batch = self._prepare_inputs(self.data_collator([self.train_dataset[i] for i in self.probed]))
        return torch.cat(self.compute_ref_log_probs(self.model, batch)).tolist()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the log-ratios: rewards are log-ratios times beta."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        for side in ("chosen", "rejected", "margins"):
            if rewards := metrics.get(f"rewards/{side}"):
                metrics[f"log_ratios/{side}"] = [reward / self.beta for reward in rewards]
        super().log(logs, start_time)


def _gradient_norm(model: nn.Module) -> float:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients).item()


def _first_row(batch: dict[str, Tensor]) -> tuple[int, ...]:
    """The ids of a batch's first row and side, without padding."""
    return tuple(batch["input_ids"][0][batch["attention_mask"][0].bool()].tolist())
