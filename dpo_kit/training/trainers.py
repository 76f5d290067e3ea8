"""TRL's trainers with guards: how both are set up, what stops them, and how they go on from a verified checkpoint.

`GuardedTrainer` comes before one of TRL's trainers in the list of base classes. It changes no number that TRL
computes. It stops at the first loss, gradient or margin that is not finite, before the optimizer can write it into the
weights. It checks at every checkpoint that the reference still gives the log-probs that it gave at the start. It
resumes from the newest checkpoint that verifies, at exactly the state in which that one was saved.
"""

import hashlib
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import datasets
import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainerControl, TrainerState
from trl import SFTTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from dpo_kit.errors import DpoKitError
from dpo_kit.machine import peak_memory_mb
from dpo_kit.models.identity import base_fingerprint
from dpo_kit.profiles import DpoSettings, Profile, SftSettings
from dpo_kit.training.checkpoints import Checkpoints, manifest
from dpo_kit.training.fast import FastDPOTrainer, select_rows
from dpo_kit.training.metrics_log import MetricsLog

LOG = "log.jsonl"
PROBE_ROWS = 8  # rows of the data on which the reference is compared with itself
SAME_PROCESS = 1e-5  # nats between two sums of log-probs that one process computes in the same way
OTHER_MACHINE = 0.5  # nats: machines round differently, in bf16 by tenths; the weights themselves are compared by hash

datasets.disable_progress_bars()  # tokenising takes about a second; longer work has the bar of `Progress`


# ---- set-up -----------------------------------------------------------------------------------------------------


def refuse_several_processes() -> None:
    """Raise DpoKitError where a launcher such as torchrun started this process as one of several."""
    count = os.environ.get("WORLD_SIZE") or "1"
    if count != "1":
        raise DpoKitError(
            f"WORLD_SIZE = {count}: training in several processes is not supported, because each would train on full "
            "batches and write the same files; start one process, without torchrun or accelerate launch"
        )


def common_arguments(profile: Profile, settings: SftSettings | DpoSettings, folder: Path, seed: int) -> dict[str, Any]:
    """Keyword arguments for `SFTConfig` and `DPOConfig`. Raises DpoKitError where a tracker is not installed."""
    if settings.report_to != "none" and find_spec(settings.report_to) is None:
        raise DpoKitError(f"report_to = {settings.report_to!r} is not installed; install it, or set report_to = 'none'")
    rows = rows_at_once(profile, settings)
    return {
        "output_dir": str(folder),
        "seed": seed,
        "num_train_epochs": settings.epochs,
        "learning_rate": settings.learning_rate,
        "optim": settings.optimizer,
        "lr_scheduler_type": settings.scheduler,
        "per_device_train_batch_size": rows,
        "per_device_eval_batch_size": rows,
        "gradient_accumulation_steps": settings.batch_size // rows,
        "max_length": profile.model.max_length,
        # TRL trains in bf16 unless told otherwise; here the profile decides
        "bf16": profile.model.compute_dtype == "bfloat16",
        "use_cpu": not torch.cuda.is_available(),
        # recomputing activations takes a third more time, to save memory that a small model does not need
        "gradient_checkpointing": profile.model.checkpointing,
        "logging_steps": 1,
        # by default transformers logs a NaN loss as 0.0
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": settings.save_every,
        "report_to": settings.report_to,
        "disable_tqdm": True,
        # pinned memory is for copies to a GPU, and torch warns about it without one
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def rows_at_once(profile: Profile, settings: SftSettings | DpoSettings) -> int:
    """The most rows that divide the batch and fit in `max_tokens` if each is padded to `max_length`; at least one."""
    if settings.max_tokens is None:
        return settings.batch_size
    sides = 2 if isinstance(settings, DpoSettings) else 1
    most = settings.max_tokens // (sides * profile.model.max_length)
    return max((n for n in range(1, settings.batch_size + 1) if settings.batch_size % n == 0 and n <= most), default=1)


def run_identity(profile: Profile, model: PeftModel, seed: int, data: Iterable[Any], *tables: str) -> dict[str, Any]:
    """What decides the result of a training run, as plain data. `tables` are those of the profile that it reads.

    A run is not resumed from a checkpoint whose identity differs in any part. `max_tokens` is left out: it only cuts a
    batch to fit into memory, so a run that ran out of memory can be resumed with a smaller value.
    """
    digest = hashlib.sha256()
    for row in data:
        digest.update(json.dumps(row).encode() + b"\n")
    settings = {table: getattr(profile, table).model_dump(exclude={"max_tokens"}) for table in ("model", *tables)}
    data_and_base = {"data_sha256": digest.hexdigest(), "base": base_fingerprint(model)}
    return {"stage": tables[0], "seed": seed, **settings, **data_and_base}


# ---- stopping ---------------------------------------------------------------------------------------------------


class TrainingStopped(DpoKitError):
    """Training ended before its last step because it was asked to; the message says how to go on."""


class StopOnEvent(TrainerCallback):
    """Saves a checkpoint and stops at the end of the step in which a button's thread or a signal set `event`."""

    def __init__(self, event: threading.Event):
        self.event = event

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.event.is_set():
            control.should_save = control.should_training_stop = True


@contextmanager
def stop_on_signals(event: threading.Event) -> Iterator[list[int]]:
    """Let SIGINT and SIGTERM set `event` for the length of the block; yields the list of the signals received.

    A second signal interrupts at once. Only the main thread receives signals; in any other the block changes nothing.
    """
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
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
    """End the run: KeyboardInterrupt after SIGINT, exit code 143 after SIGTERM, else TrainingStopped."""
    if signal.SIGINT in received:
        raise KeyboardInterrupt(message)
    if signal.SIGTERM in received:
        print(message, file=sys.stderr)
        raise SystemExit(128 + signal.SIGTERM)
    raise TrainingStopped(message)


# ---- the trainers -----------------------------------------------------------------------------------------------


class GuardedTrainer(Trainer):
    """What the guarded trainers of SFT and DPO share.

    Set `checkpoints`, `metrics_log` and `row_names` (a name for each row of the data) after the trainer is built.
    """

    sides: ClassVar[int] = 1  # rows of a batch for each row of the data
    unit: ClassVar[str] = "rows_per_s"
    checkpoints: Checkpoints
    metrics_log: MetricsLog
    row_names: Sequence[str]
    model: PeftModel
    processing_class: PreTrainedTokenizerBase
    train_dataset: Dataset
    args: Any  # SFTConfig or DPOConfig
    _metrics: Any  # TRL's lists of values, by mode and then by name
    _signature_columns: Any  # the columns of the data that reach the collator
    _seconds, _rows = 0.0, 0
    _longest_fits = False

    def run(self, stop: threading.Event | None = None) -> None:
        """Train to the last step, from the newest checkpoint that verifies if there is one.

        On a CPU losses, weights and log are then, bit for bit, those of a run that was never interrupted.
        `stop`, SIGINT and SIGTERM end the run after the step under way, with a checkpoint: see `raise_stopped`.
        """
        stop = stop or threading.Event()
        self.add_callback(StopOnEvent(stop))
        self._reference = self.reference_logps()
        resumed = self.checkpoints.newest()
        if resumed:
            self._restore(resumed)
            if manifest(resumed)["step"] == manifest(resumed)["steps"]:
                # the last step was done, and the process was killed before it saved the adapter
                self._load_from_checkpoint(str(resumed))
                return
        with stop_on_signals(stop) as received:
            self.train(resume_from_checkpoint=str(resumed) if resumed else None)
        if stop.is_set() and self.state.global_step < self.state.max_steps:
            where = f"step {self.state.global_step} of {self.state.max_steps}"
            raise_stopped(received, f"stopped at {where}; run the same again to go on from its checkpoint")

    def sequence_logps(self, inputs: dict[str, Tensor]) -> Tensor:
        """The summed log-probs of each sequence's tokens that bear loss, fp32 `(rows,)`, as training computes them.

        `inputs` is a collated batch. The forward pass is the trainer's own, under its autocast. The caller sets train
        or eval mode, and decides whether a gradient is needed.
        """
        labels = inputs.get("labels")
        if labels is None:  # a batch of pairs has a mask instead
            labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        batch = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "labels": labels}
        with self.accelerator.autocast():
            return self.model(**batch, use_cache=False, fused_lm_head=True).log_probs.float().sum(dim=1)

    def reference_logps(self) -> list[float]:
        """The summed log-probs that the reference gives to the same few rows each time; empty without a reference."""
        return []

    def _restore(self, checkpoint: Path) -> None:
        sealed = manifest(checkpoint)
        self.metrics_log.restore((checkpoint / LOG).read_bytes())
        self._total_train_tokens = sealed["tokens"]
        self._compare(sealed["reference_logps"], "when the checkpoint was made and now", OTHER_MACHINE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._compare(self.reference_logps(), "in the checkpoint and at the start")

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._compare(self.reference_logps(), f"at step {self.state.global_step} and at the start")
        steps, tokens = self.state.max_steps, self._total_train_tokens
        about = {"steps": steps, "tokens": tokens, "reference_logps": self._reference}

        def write() -> None:
            super(GuardedTrainer, self)._save_checkpoint(model, trial)
            log = self.checkpoints.writing / f"checkpoint-{self.state.global_step}" / LOG
            log.write_bytes(self.metrics_log.path.read_bytes())

        self.checkpoints.save(self.state.global_step, about, write)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.checkpoints.writing)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write nothing here: TRL would write a card at every save, but ours is written once, by `release`."""

    def _compare(self, found: list[float], when: str, tolerance: float = SAME_PROCESS) -> None:
        distances = [abs(a - b) for a, b in zip(found, self._reference, strict=True)]
        if not all(distance <= tolerance for distance in distances):  # a NaN does not agree either
            raise DpoKitError(
                f"the reference changed: {when} its log-probs on fixed rows differ by {max(distances):.2g} nats; "
                "rewards and margins mean nothing against a reference that moves: train from the SFT adapter again"
            )

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """TRL's step, timed, and checked before the optimizer uses its gradient.

        Raises DpoKitError where the loss, the gradient's norm or the margin is not finite.
        """
        if not self._longest_fits:
            self._try_longest(model)
        started = time.perf_counter()
        loss = super().training_step(model, inputs, num_items_in_batch)
        norm = _gradient_norm(self.model)
        margin = self._metrics["train"].get("rewards/margins", [0.0])[-1]
        if not all(map(math.isfinite, (loss.item(), norm, margin))):
            self._stop_at_non_finite(inputs, loss.item(), norm, margin)
        self._seconds += time.perf_counter() - started
        self._rows += len(inputs["input_ids"]) // self.sides
        return loss

    def _try_longest(self, model: nn.Module) -> None:
        """Compute the gradient of the longest batch once, so that a lack of memory shows now and not after an hour.

        No weight changes and nothing is logged. Raises DpoKitError where the device has too little memory.
        """
        lengths = [sum(len(row[name]) for name in row if name.endswith("_ids")) for row in self.train_dataset]
        rows = sorted(range(len(lengths)), key=lambda i: -lengths[i])[: self.args.per_device_train_batch_size]
        tokens, metrics = (
            self._total_train_tokens,
            {name: list(values) for name, values in self._metrics["train"].items()},
        )
        try:
            batch = self.data_collator([self.train_dataset[i] for i in rows])
            super().training_step(model, batch, None)
        except torch.OutOfMemoryError:
            stage = "sft" if self.sides == 1 else "dpo"
            half = self._tokens_at_once(batch) // 2
            raise DpoKitError(
                f"{stage}: the {len(rows)} longest rows, of up to {lengths[rows[0]]:,} tokens, do not fit into the "
                f"memory of {self.args.device}; train with --set {stage}.max_tokens={half}, "
                f"which changes no result, or with shorter rows (model.max_length, now {self.args.max_length})"
            ) from None
        model.zero_grad()
        self._total_train_tokens = tokens
        self._metrics["train"].clear()
        self._metrics["train"].update(metrics)
        self._longest_fits = True

    def _tokens_at_once(self, batch: dict[str, Any]) -> int:
        """How many tokens of a batch, padding included, go through the model together."""
        return getattr(self, "max_tokens", None) or batch["input_ids"].numel()

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
        """The names of the rows whose own loss or gradient is not finite. Each row is tried alone."""
        offending = []
        for i, name in enumerate(self._names(inputs)):
            self.model.zero_grad()
            loss: Any = self.compute_loss(self.model, self._prepare_inputs(select_rows(inputs, [i], self.sides)))
            loss.backward()
            if not (loss.isfinite().item() and math.isfinite(_gradient_norm(self.model))):
                offending.append(name)
        return offending

    def _names(self, inputs: dict[str, Any]) -> list[str]:
        """The names of a batch's rows, found by their tokens: TRL drops all other columns before it makes a batch."""
        rows = zip(self.train_dataset, self.row_names, strict=True)
        known = {_first_row(self.data_collator([row])): name for row, name in rows}
        count = len(inputs["input_ids"]) // self.sides
        return [known[_first_row(select_rows(inputs, [i], self.sides))] for i in range(count)]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add speed and memory to a step's row. The speed counts the time of forward and backward alone."""
        if "loss" in logs and self._rows:
            logs |= {self.unit: self._rows / self._seconds, "memory_mb": peak_memory_mb()}
            self._seconds, self._rows = 0.0, 0
        super().log(logs, start_time)


class MaskedPairs(DataCollatorForPreference):
    """TRL's collator for rows that say themselves which tokens of each side are scored."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """As TRL's, with `chosen_mask` and `rejected_mask` in place of ones after the prompt."""
        batch = super().torch_call(examples)
        rows = [(example, side) for side in ("chosen", "rejected") for example in examples]
        for scored, (example, side) in zip(batch["completion_mask"], rows, strict=True):
            mask = torch.tensor([0] * len(example["prompt_ids"]) + example[f"{side}_mask"])[: len(scored)]
            scored[: len(mask)] = mask
        return batch


class GuardedSFTTrainer(GuardedTrainer, SFTTrainer):
    """TRL's `SFTTrainer` with guards. It always computes with TRL's own forward."""

    stock_forward = staticmethod(nullcontext)


class GuardedDPOTrainer(GuardedTrainer, FastDPOTrainer):
    """TRL's `DPOTrainer` on the fast path, with guards. It also logs log-ratios, log pi - log pi_ref, in nats."""

    sides = 2
    unit = "pairs_per_s"

    def _prepare_dataset(self, dataset: Dataset, processing_class: Any, args: Any, dataset_name: str) -> Dataset:
        """Rows that come with their ids stay as they are; as in TRL, those go whose prompt leaves an answer no room."""
        if "prompt_ids" not in dataset.column_names:
            return super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        return dataset.filter(lambda row: len(row["prompt_ids"]) < args.max_length)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = [*self._signature_columns, "chosen_mask", "rejected_mask"]

    def probe_batch(self) -> dict[str, Tensor]:
        """The first rows of the data, on which reference and policy are compared with what they were before."""
        rows = range(min(PROBE_ROWS, len(self.train_dataset)))
        return self._prepare_inputs(self.data_collator([self.train_dataset[i] for i in rows]))

    def reference_logps(self) -> list[float]:
        """The reference's log-probs of the probe's chosen answers, then of its rejected ones."""
        return torch.cat(self.compute_ref_log_probs(self.model, self.probe_batch())).tolist()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the log-ratios. A reward is beta times a log-ratio."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        for side in ("chosen", "rejected", "margins"):
            if rewards := metrics.get(f"rewards/{side}"):
                metrics[f"log_ratios/{side}"] = [reward / self.beta for reward in rewards]
        super().log(logs, start_time)


def _gradient_norm(model: nn.Module) -> float:
    """The Euclidean norm of all gradients together; NaN where any gradient contains NaN."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients).item()


def _first_row(batch: dict[str, Tensor]) -> tuple[int, ...]:
    """The token ids of a batch's first sequence, without padding."""
    return tuple(batch["input_ids"][0][batch["attention_mask"][0].bool()].tolist())
