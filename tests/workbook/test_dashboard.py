"""Warnings fire on what they name and on nothing else; the dashboard listens, stops, and leaves a static figure."""

import asyncio
import math
import re
import threading

import pytest

from dpo_kit.profiles import ROOT
from dpo_kit.training.metrics_log import read_log
from dpo_kit.training.trainers import TrainingStopped
from dpo_kit.views.training import dashboard_figure, smoothed, training_curves
from dpo_kit.workbook.dashboard import Dashboard, samples_html, show_training
from dpo_kit.workbook.training_warnings import warnings_in

STEPS = 40
NOISE = [((7 * step) % 11 - 5) / 5 for step in range(STEPS)]  # in -1..1, of mean about 0, and no trend


def run(**columns):
    """A healthy log of forty steps: margin, held-out margin and KL grow, the chosen answers gain. Columns may differ.

    A column is a function of the share of the run that is done, 0 to 1, and of noise in -1..1; None takes it away.
    """
    step_columns = {
        "loss": lambda t, n: 0.69 - 0.2 * t + 0.02 * n,
        "rewards/margins": lambda t, n: 0.5 * t + 0.05 * n,
        "rewards/chosen": lambda t, n: 0.2 * t + 0.05 * n,
        "rewards/rejected": lambda t, n: -0.3 * t,
        "rewards/accuracies": lambda t, n: 0.75 + 0.2 * n,
    }
    held_out = {
        "eval_rewards/margins": lambda t, n: 0.4 * t,
        "kl/sequence": lambda t, n: 0.9 * t,
        "kl/standard_error": lambda t, n: 0.1,
        "answers/length": lambda t, n: 40 + 2 * n,
        "answers/stop_rate": lambda t, n: 0.97 + 0.03 * n,
    }
    made = {**step_columns, **held_out, **columns}

    def row(names, step):
        return {"step": step} | {name: made[name](step / STEPS, NOISE[step]) for name in names if made[name]}

    kinds_of_row = [(step_columns, held_out) if step % 5 == 0 else (step_columns,) for step in range(STEPS)]
    return [row(names, step) for step, kinds in enumerate(kinds_of_row) for names in kinds]


def kinds(rows, **options):
    return [warning.kind for warning in warnings_in(rows, **options)]


FAULTS = {
    "chosen falling": {"rewards/chosen": lambda t, n: -0.5 * t + 0.05 * n},
    "held-out turning": {"eval_rewards/margins": lambda t, n: 0.4 * t if t < 0.6 else 0.24 - 0.3 * (t - 0.6)},
    "KL running away": {"kl/sequence": lambda t, n: 20 * t**4, "eval_rewards/margins": lambda t, n: 0.2 * min(t, 0.5)},
    "saturated": {"loss": lambda t, n: 0.01 + 0.001 * n, "rewards/accuracies": lambda t, n: 1.0},
    "length growing": {"answers/length": lambda t, n: 40 + 30 * t},
    "stop rate falling": {"answers/stop_rate": lambda t, n: 1 - 0.4 * t},
    "batch of one": {"rewards/accuracies": lambda t, n: float(n > -0.5)},
    "not finite": {"rewards/margins": lambda t, n: math.nan if t > 0.9 else 0.5 * t + 0.05 * n},
}
# Near misses: what looks alike and is no fault.
HARMLESS = {
    "noise around zero is no fall": {"rewards/chosen": lambda t, n: 0.3 * n},
    "a small fall beside a large margin": {"rewards/chosen": lambda t, n: -0.05 * t},
    "all falls, but no margin grows": {
        "rewards/chosen": lambda t, n: -0.2 * t,
        "rewards/margins": lambda t, n: 0.1 * n,
    },
    "a margin that levels off": {"eval_rewards/margins": lambda t, n: min(0.4 * t, 0.2)},
    "both margins come down": {
        "eval_rewards/margins": lambda t, n: 0.4 * t if t < 0.6 else 0.24 - 0.3 * (t - 0.6),
        "rewards/margins": lambda t, n: 0.5 * t if t < 0.6 else 0.3 - 0.3 * (t - 0.6),
    },
    "KL that buys margin": {"kl/sequence": lambda t, n: 20 * t**2, "eval_rewards/margins": lambda t, n: 2 * t**2},
    "KL within its own noise": {
        "kl/sequence": lambda t, n: 9 * t**4,
        "kl/standard_error": lambda t, n: 3.0,
        "eval_rewards/margins": lambda t, n: 0.1,
    },
    "right, but not yet sure": {"rewards/accuracies": lambda t, n: 1.0},
    "length that wavers": {"answers/length": lambda t, n: 40 + 8 * n},
    "one bad sample of ends": {"answers/stop_rate": lambda t, n: 0.7 if t == 0.5 else 0.95},
    "a batch of two": {"rewards/accuracies": lambda t, n: (n > 0) / 2 + (n > -0.5) / 2},
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_named_with_its_cause_and_nothing_else_is(kind):
    (warning,) = warnings_in(run(**FAULTS[kind]))
    assert warning.kind == kind
    assert len(warning.cause) > 40


@pytest.mark.parametrize("case", HARMLESS)
def test_what_only_looks_alike_is_quiet(case):
    assert kinds(run(**HARMLESS[case]), batch_size=16) == []


def test_a_healthy_run_is_quiet_at_every_moment():
    rows = run()
    assert [kinds(rows[:n], batch_size=16) for n in range(len(rows) + 1)] == [[]] * (len(rows) + 1)


def test_the_shipped_run_is_quiet():
    assert kinds(read_log(ROOT / "data" / "runs" / "tiny" / "dpo_log.jsonl"), batch_size=16) == []


def test_a_known_batch_size_decides_about_zeros_and_ones():
    rows = run(**FAULTS["batch of one"])
    assert kinds(rows, batch_size=1) == ["batch of one"]
    assert kinds(rows, batch_size=8) == []


def test_a_rule_without_its_columns_says_nothing():
    for name in {name for row in run() for name in row} - {"step"}:
        assert kinds(run(**{name: None}), batch_size=16) == [], name
    assert kinds([]) == []


def test_every_link_leads_to_a_heading():
    for columns in FAULTS.values():
        (warning,) = warnings_in(run(**columns))
        notebook, _, anchor = warning.link.partition("#")
        text = (ROOT / "notebooks" / "py" / notebook).with_suffix(".py").read_text(encoding="utf-8")
        headings = [title.replace(" ", "-") for title in re.findall(r"^# #+ (.+)$", text, re.MULTILINE)]
        assert anchor in headings, warning.link


def test_the_running_mean_is_the_weighted_mean_by_hand_and_passes_over_nan():
    keep = 1 - 2 / (10 + 1)  # span 10
    assert smoothed([1.0, 3.0]) == pytest.approx([1.0, (keep * 1 + 3) / (keep + 1)])
    assert smoothed([2.0, math.nan, 2.0]) == pytest.approx([2.0, 2.0, 2.0])


def titles(figure):
    return [note.text for note in figure.layout.annotations]


def test_a_panel_without_columns_is_left_out_and_the_frontier_joins_by_step():
    assert len(titles(dashboard_figure(run()))) == 5  # no speed in these rows
    stock = run(**dict.fromkeys(("eval_rewards/margins", "kl/sequence", "kl/standard_error", "answers/length")))
    assert titles(dashboard_figure(stock)) == ["margin, β × nats", "rewards, β × nats", "accuracy"]
    assert titles(dashboard_figure([])) == ["no column of DPO in this log"]
    rows = [{"step": 0, "kl/sequence": 0.0}, {"step": 0, "eval_rewards/margins": 0.0}, {"step": 5, "kl/sequence": 9.0},
            {"step": 9, "eval_rewards/margins": 0.3}, {"step": 9, "kl/sequence": 2.0}]  # fmt: skip
    (points,) = [trace for trace in dashboard_figure(rows).data if trace.name == "the run so far"]
    assert (points.x, points.y, points.customdata) == ((0.0, 2.0), (0.0, 0.3), (0, 9))


def test_the_curves_of_a_finished_run_are_its_columns_with_their_errors():
    rows = run()
    figure = training_curves(rows)
    raw = {(trace.xaxis, trace.name): trace for trace in figure.data if trace.opacity == 0.5 or trace.name == "KL"}
    assert list(raw["x", "loss"].y) == [row["loss"] for row in rows if "loss" in row]
    (kl,) = (trace for trace in raw.values() if trace.name == "KL")
    assert list(kl.y) == [row["kl/sequence"] for row in rows if "kl/sequence" in row]
    assert set(kl.error_y.array) == {1.96 * 0.1}
    assert len(titles(figure)) == 5
    assert figure.layout.shapes[0].y0 == math.log(2)


def test_lines_of_one_panel_differ_by_dash_as_well_as_by_colour():
    traces = [trace for trace in dashboard_figure(run()).data if trace.showlegend]
    assert len({(trace.xaxis, trace.line.dash) for trace in traces}) == len(traces)


def test_an_answer_is_shown_as_text():
    row = {"step": 3, "answers/samples": [{"prompt": "<b>why</b>", "answer": "<script>run()</script>\x1b[31m"}]}
    html = samples_html([row])
    assert "<script" not in html
    assert "<b>why" not in html
    assert "&lt;script&gt;run()&lt;/script&gt;⟨U+001B⟩[31m" in html


@pytest.fixture
def displayed(monkeypatch):
    """What a headless cell displays."""
    shown = []
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.setattr("dpo_kit.workbook.dashboard.display", lambda html: shown.append(html.data))
    monkeypatch.setattr("dpo_kit.workbook.dashboard.show", lambda figure, words: shown.append((figure, words)))
    # the default of an argument is bound early
    monkeypatch.setattr(show_training, "__defaults__", (None, "", lambda html: shown.append(html.data)))
    return shown


def train(rows, *, callbacks, stop):
    """Hands rows over, as a log does, and ends as training does after its button was pressed."""
    assert threading.current_thread() is not threading.main_thread()
    for row in rows:
        for callback in callbacks:
            callback.on_row(row)
        if stop.is_set():
            raise TrainingStopped("stopped at step 3 of 40; run the same again to go on")
    return "trained"


def test_headless_it_returns_what_training_returns_and_leaves_one_static_figure(displayed):
    heard = []
    other = type("Other", (), {"on_row": lambda self, row: heard.append(row)})()
    dashboard = Dashboard(STEPS)
    assert asyncio.run(dashboard.watch(train, run(), callbacks=[other])) == "trained"
    assert heard == run() == dashboard.rows
    said, (figure, words) = displayed
    assert "step 39 of 40" in said
    assert type(figure).__name__ == "Figure"
    assert "margin" in words


def test_what_ends_training_is_shown_and_then_raised(displayed):
    dashboard = Dashboard(STEPS, threading.Event())
    dashboard.stop.set()
    with pytest.raises(TrainingStopped):
        asyncio.run(dashboard.watch(train, run()))
    assert "stopped at step 3 of 40" in displayed[0]


def test_interrupting_the_cell_stops_training_rather_than_leave_it_running(displayed):
    begun = threading.Event()

    def endless(*, callbacks, stop):
        begun.set()
        stop.wait()
        return "stopped"

    async def interrupted():
        cell = asyncio.create_task(Dashboard(STEPS).watch(endless))
        await asyncio.to_thread(begun.wait)
        cell.cancel()
        return await cell

    assert asyncio.run(interrupted()) == "stopped"


def test_rows_told_again_after_a_resume_are_not_drawn_twice():
    dashboard = Dashboard(STEPS)
    for row in [*run(), *run()[:20]]:
        dashboard.on_row(row)
    assert dashboard.rows == run()


def test_the_state_of_a_stock_trainer_draws_the_same_panels(tmp_path):
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    words = {word: i for i, word in enumerate(("<pad>", "<eos>", "why", "because", "no"))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    pairs = Dataset.from_list([{"prompt": "why", "chosen": " because", "rejected": " no"}] * 12)
    how = {"per_device_train_batch_size": 1, "num_train_epochs": 1, "logging_steps": 1, "learning_rate": 1e-2}
    evaluated = {"eval_strategy": "steps", "eval_steps": 4, "precompute_ref_log_probs": True}
    trainer = DPOTrainer(
        LlamaForCausalLM(LlamaConfig(vocab_size=5, **shape)),
        args=DPOConfig(str(tmp_path), use_cpu=True, disable_tqdm=True, **how, **evaluated),
        train_dataset=pairs,
        eval_dataset=pairs,
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_state()
    rows = read_log(tmp_path)
    figure = dashboard_figure(rows)
    assert titles(figure) == ["margin, β × nats", "rewards, β × nats", "accuracy"]
    drawn = {trace.name: trace for trace in figure.data if trace.showlegend}
    assert drawn["held-out pairs"].x == (4, 8, 12)
    assert drawn["chosen"].x == tuple(range(1, 13))
    assert "batch of one" in kinds(rows, batch_size=1)
