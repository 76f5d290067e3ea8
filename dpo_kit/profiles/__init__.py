"""A profile holds all settings of a run: model, lengths, batches, rates, data and judge, and what suits the hardware.

Each profile is a commented TOML file beside this module, with one table for each stage of a run. When a value changes,
the stage of its table and the stages after it are built again. The environment overrides the file
(`DPO_KIT_DPO__BETA=0.05`). Keywords and the command line (`--set dpo.beta=0.05`) override both.
"""

import os
import tomllib
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dpo_kit.errors import DpoKitError

HERE = Path(__file__).parent
ROOT = HERE.parents[1]  # the checkout's folder; for an installed package it is site-packages
IN_CHECKOUT = (ROOT / "pyproject.toml").is_file()
DATA = ROOT / "data" if IN_CHECKOUT else HERE.parent / "data"  # in a wheel the folder is inside the package
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Loss = Literal[
    "sigmoid", "sigmoid_norm", "cdpo", "ipo", "hinge", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "aot",
    "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft",
]  # fmt: skip
SMOOTHED = {"cdpo", "robust", "exo_pair", "aot", "aot_unpaired"}  # the losses that use `label_smoothing`


class Settings(BaseModel):
    """A frozen table of a profile that rejects keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True)


class ModelSettings(Settings):
    """The frozen base, how it is quantised, and the shape of the adapters on it.

    `lora_targets` names the layers that get an adapter, as PEFT's `target_modules`: the last parts of their names, a
    regular expression, or "all-linear" for every linear layer but the head. `rslora` scales by alpha / sqrt(r) in place
    of alpha / r (arXiv 2312.03732). `dora` also learns the norm of each weight's columns (arXiv 2402.09353).
    `checkpointing` saves memory: the activations of a layer are not kept but computed again in the backward pass. SFT
    does so for all layers, DPO for the first `checkpoint_layers`, by default as few as the card's memory allows.

    `chat_template` is a Jinja file, "chatml", or "none", which joins prompt and answer as they are, with EOS where
    `eos_after_answer` says so; "" is the tokenizer's own. `template_kwargs` are arguments that the template gets each
    time. `scored_turns` and `thinking` say which tokens of an answer bear loss: see `models.tokens.Scoring`.
    """

    path: str
    quantize: Literal["nf4", "none"]
    compute_dtype: Literal["float32", "bfloat16"]
    max_length: Count
    lora_r: Count
    lora_alpha: Count
    lora_targets: str | list[str] = "all-linear"
    rslora: bool = False
    dora: bool = False
    checkpointing: bool = False
    checkpoint_layers: Count | None = None
    chat_template: str = ""
    template_kwargs: dict[str, Any] = {}
    eos_after_answer: bool = True
    scored_turns: Literal["all", "last"] = "all"
    thinking: Literal["scored", "masked"] | None = None


class TrainingSettings(Settings):
    """What SFT and DPO have in common.

    `batch_size` is the number of rows that one optimiser step learns from. At most `max_tokens` tokens of them, padding
    included, go through the model at once, and their gradients are added up; None sends the whole batch at once.
    `optimizer` and `scheduler` are names that transformers knows; the paper's optimiser is "rmsprop".
    `report_to` names a tracker that gets the metrics besides the metrics log.
    """

    epochs: Positive
    learning_rate: Positive
    batch_size: Count
    max_tokens: Count | None = None
    save_every: Count = 50
    optimizer: Literal["adamw_torch_fused", "adamw_torch", "paged_adamw_8bit", "rmsprop", "sgd"] = "adamw_torch_fused"
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    any_learning_rate: bool = False
    report_to: Literal["none", "trackio", "tensorboard", "wandb", "mlflow"] = "none"


class SftSettings(TrainingSettings):
    """How many demonstrations there are, how often they are wrong (own world only), and the fine-tuning on them.

    With `skip` there is no fine-tuning: DPO starts from the base, or an instruct model as it is, and compares with it.
    `from` names the folder of an adapter for DPO to start from, and to compare with, in place of a fine-tuned one.
    `data` names a file of demonstrations to learn from, in place of the pairs' chosen answers.
    """

    skip: bool = False
    from_: str = Field("", alias="from")
    data: str = ""
    demonstrations: Count
    wrong_severity: Share
    invented_fact: Share
    wrong_action: Share
    broken_format: Share
    rambling: Share

    @model_validator(mode="after")
    def _one_start(self) -> "SftSettings":
        given = {"skip": self.skip, "from": self.from_, "data": self.data}
        if len(chosen := [name for name, value in given.items() if value]) > 1:
            raise ValueError(f"{' and '.join(chosen)} say different things about where DPO starts; keep one")
        return self


class DataSettings(Settings):
    """Where the preference pairs come from: "triage" is the workbook's own world, whose pairs are sampled and judged.

    Anything else names external pairs: a file in any format of `preferences.importers`, or a folder or Hub id for
    `datasets.load_dataset` with its `split`. At most `limit` of them are used. `heldout` is the share of prompts that
    training measures itself on and never learns from. Where the audit finds a blocking fault in a row, `on_blocking`
    decides whether the run stops or the row is dropped. Rows that the audit's findings in `keep` would drop stay. `map`
    says what columns and values mean that have no usual name, as the option --map does: ["prompt=question",
    "preference.0=first"].
    """

    pairs: str = "triage"
    split: str = "train"
    limit: Count | None = None
    heldout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    on_blocking: Literal["stop", "drop"] = "stop"
    keep: tuple[str, ...] = ()
    map: tuple[str, ...] = ()

    @property
    def external(self) -> bool:
        """Whether the pairs come from outside, and not from the workbook's own world."""
        return self.pairs != "triage"


class PairSettings(Settings):
    """How many prompts are answered twice, and how the two answers are sampled.

    Pairs of the `heldout_prompts` are only measured: training logs its margin on them, and never learns from them.
    """

    prompts: Count
    heldout_prompts: Annotated[int, Field(ge=0)] = 0
    temperatures: tuple[Positive, Positive]
    max_new_tokens: Count
    batch_size: Count
    shuffle_labels: bool


class DpoSettings(TrainingSettings):
    """The preference training. KL to the reference is measured on the policy's own answers to `kl_prompts` prompts,
    every `kl_every` optimiser steps.

    `loss` names one or more of TRL's losses, which are added with `loss_weights` (1 each by default): "sigmoid" is DPO,
    and ["sigmoid", "sft"] adds the likelihood of the chosen answer. `label_smoothing` is the share of labels that is
    taken to be wrong by the losses that allow for it: "cdpo" is DPO with smoothed labels, and "robust" is unbiased
    under that noise (arXiv 2403.00409).
    """

    beta: Positive
    loss: list[Loss] = ["sigmoid"]
    loss_weights: list[float] | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    warmup_share: Share
    kl_prompts: Count
    kl_every: Count

    @model_validator(mode="after")
    def _losses_fit(self) -> "DpoSettings":
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss):
            raise ValueError(f"{len(self.loss_weights)} loss_weights for {len(self.loss)} losses; give each its own")
        if len(set(self.loss)) < len(self.loss) or not self.loss:
            raise ValueError(f"loss = {self.loss}: name at least one loss, and each once")
        smoothed = SMOOTHED.intersection(self.loss)
        if self.label_smoothing and not smoothed:
            raise ValueError(
                f"label_smoothing = {self.label_smoothing:g} would be ignored by {', '.join(self.loss)}; "
                f"it is used by {', '.join(sorted(SMOOTHED))}"
            )
        if smoothed and not self.label_smoothing:
            raise ValueError(f"loss {', '.join(sorted(smoothed))} needs label_smoothing, the share of wrong labels")
        return self


class EvaluationSettings(Settings):
    """Held-out prompts for the comparison of the three arms."""

    prompts: Count
    temperature: Positive
    max_new_tokens: Count
    batch_size: Count


class JudgeSettings(Settings):
    """The judge that decides which of two answers is better. Prices are dollars per million tokens.

    API keys come from the environment; a profile never contains one.
    """

    kind: Literal["rubric", "simulated", "reward", "openai", "anthropic"] = "rubric"
    model: str = ""
    base_url: str = ""
    criteria: str = ""
    both_orders: bool = True
    accuracy: Share = 1.0
    position_bias: Share = 0.0
    length_bias: Share = 0.0
    margin: Annotated[float, Field(ge=0)] = 0.0
    max_dollars: Annotated[float, Field(ge=0)] = 1.0
    input_price: Annotated[float, Field(ge=0)] = 0.0
    output_price: Annotated[float, Field(ge=0)] = 0.0
    concurrency: Count = 4
    max_reply_tokens: Count = 2048
    max_answer_characters: Count = 20_000
    temperature: Annotated[float, Field(ge=0)] | None = None
    timeout_seconds: Positive = 120.0
    attempts: Count = 4


class Profile(Settings):
    """Everything a run depends on besides the seed."""

    name: str
    model: ModelSettings
    sft: SftSettings
    pairs: PairSettings
    dpo: DpoSettings
    evaluation: EvaluationSettings
    judge: JudgeSettings = JudgeSettings()
    data: DataSettings = DataSettings()

    @property
    def model_path(self) -> str:
        """Where the base model is: the absolute path of a shipped or local folder, or else a Hub id as it stands."""
        shipped, local = DATA.parent / self.model.path, Path(self.model.path)
        # a missing path below data/ is a shipped model that was removed; loading it says how to restore it
        if self.model.path.startswith("data/") and (shipped.exists() or not local.exists()):
            return str(shipped)
        return str(local.absolute()) if local.exists() else self.model.path


def profile_names() -> list[str]:
    """The names that `load_profile` knows."""
    return sorted(path.stem for path in HERE.glob("*.toml"))


def load_profile(name: str | None = None, **overrides: dict[str, Any]) -> Profile:
    """Load a profile by name or from a TOML file, by default the one in `DPO_KIT_PROFILE`, else `tiny`.

    A file of your own has the same tables as those beside this module. It may begin with `like = "NAME"`: settings that
    it leaves out are then taken from the profile of that name. The profile's name is that of the file.
    Overrides are given by table: `load_profile("tiny", dpo={"beta": 0.5})`. They come before those of the environment.
    Raises DpoKitError for an unknown name, an unknown key (naming the nearest known one) or a bad value.
    """
    name = name or os.environ.get("DPO_KIT_PROFILE", "tiny")  # so notebooks run on another profile without an edit
    if name.endswith(".toml"):
        name, tables = _own_profile(Path(name).expanduser())
    else:
        tables = _shipped(name)
    for given in (_from_environment(), overrides):  # the later one wins: keywords override
        for table, values in given.items():
            if table not in TABLES:
                raise DpoKitError(f"profile {name}: unknown table {table!r}{_nearest(table, TABLES)}")
            tables[table] = tables.get(table, {}) | values
    try:
        return Profile(name=name, **tables)
    except ValidationError as error:
        raise DpoKitError(f"profile {name}: {_explain(error, tables)}") from None


def _shipped(name: str) -> dict[str, Any]:
    if name not in profile_names():
        raise DpoKitError(
            f"unknown profile {name!r}{_nearest(name, profile_names())}, or give the path of a .toml file"
        )
    return tomllib.loads((HERE / f"{name}.toml").read_text(encoding="utf-8"))


def _own_profile(path: Path) -> tuple[str, dict[str, Any]]:
    """The name and the tables of a profile that is a file of the user's own."""
    try:
        own = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DpoKitError(f"{path}: no profile can be read there ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DpoKitError(f"{path}: not a TOML file: {error}") from None
    tables = _shipped(str(own.pop("like"))) if "like" in own else {}
    for table, values in own.items():
        if not isinstance(values, dict):
            raise DpoKitError(f"{path}: {table!r} stands outside any table; settings belong to {', '.join(TABLES)}")
        tables[table] = tables.get(table, {}) | values
    if unknown := [table for table in tables if table not in TABLES]:
        raise DpoKitError(f"{path}: unknown table {unknown[0]!r}{_nearest(unknown[0], TABLES)}")
    return path.stem, tables


TABLES = [name for name in Profile.model_fields if name != "name"]


def parse_overrides(given: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Overrides by table from texts such as `dpo.beta=0.05`. A value that is not valid TOML is taken as text.

    Raises DpoKitError where one has another form.
    """
    overrides: dict[str, dict[str, Any]] = {}
    for text in given:
        where, found, value = text.partition("=")
        table, dot, key = where.strip().partition(".")
        if not (found and dot and key):
            raise DpoKitError(f"{text!r} sets nothing; write TABLE.KEY=VALUE, such as dpo.beta=0.05")
        overrides.setdefault(table, {})[key] = _value(value.strip())
    return overrides


def _from_environment() -> dict[str, dict[str, Any]]:
    """`DPO_KIT_DPO__BETA=0.05` is `dpo.beta=0.05`; variables without a double underscore are not settings."""
    names = [name for name in os.environ if name.startswith("DPO_KIT_") and "__" in name]
    texts = (f"{name.removeprefix('DPO_KIT_').lower().replace('__', '.', 1)}={os.environ[name]}" for name in names)
    return parse_overrides(texts)


def _value(text: str) -> Any:
    try:
        # so that 0.05, true and [1, 2] mean what they mean in the file
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(error: ValidationError, tables: dict[str, dict[str, Any]]) -> str:
    first = error.errors()[0]
    table, *rest = map(str, first["loc"])
    if first["type"] == "extra_forbidden" and rest:
        known = list(getattr(Profile.model_fields[table].annotation, "model_fields", ()))
        return f"unknown key {table}.{rest[0]}{_nearest(rest[0], known)}"
    if first["type"] == "value_error":
        return f"table {table}: {first['msg'].removeprefix('Value error, ')}"
    return f"{'.'.join([table, *rest])} = {first['input']!r}: {first['msg']}"


def _nearest(word: str, known: list[str]) -> str:
    close = get_close_matches(word, known, n=1)  # most unknown names are typing errors
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
