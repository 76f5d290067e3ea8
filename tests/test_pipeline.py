"""The path end to end on a very small configuration, and the command line around it."""

import hashlib
import json
import shutil
import subprocess
import sys

import pytest

from dpo_kit import pipeline
from dpo_kit.cli import main
from dpo_kit.errors import DpoKitError
from dpo_kit.files import hashes
from dpo_kit.jsonl import read_jsonl, read_pairs, read_records
from dpo_kit.pipeline import run
from dpo_kit.profiles import DATA, load_profile
from dpo_kit.records import Prompt, Response
from dpo_kit.triage import rubric
from dpo_kit.triage.incidents import is_heldout
from dpo_kit.views.report import read_report
from dpo_kit.workspace import Workspace

MADE_ONCE = ("manifest.json",)  # it holds how long the stage took


def test_the_workdir_holds_what_the_readme_promises(small_run):
    work, _, report = small_run
    for name in ("sft/adapter", "pairs/pairs.jsonl", "dpo/adapter", "eval", "report.json", "report.html"):
        assert (work / name).exists(), name
    assert not list(work.glob(".*.partial"))
    assert json.loads((work / "report.json").read_text()) == json.loads(report.to_json())
    assert read_jsonl(work / "outcomes.jsonl") == json.loads(json.dumps(report.outcomes))


def test_the_report_holds_the_comparison(small_run):
    _, profile, report = small_run
    assert (report.seed, report.profile, report.sampling) == (0, "tiny", "sampled at temperature 1")
    assert report.n_prompts == report.greedy.n_prompts == len(report.outcomes) == profile.evaluation.prompts
    assert set(report.metrics) >= {"format_conformance", "severity_match", "faithfulness", "action_match"}
    for metric in report.metrics.values():
        assert list(metric.means) == ["base", "sft", "dpo"]
        gain = metric.difference.interval
        assert gain.low <= gain.mean <= gain.high
        assert gain.mean == pytest.approx(metric.means["dpo"] - metric.means["sft"])
    counts = report.pairwise
    assert counts.wins + counts.ties + counts.losses == profile.evaluation.prompts
    assert {control.name for control in report.controls} >= {"identical", "resample", "shuffled", "padded"}
    assert set(report.timings_s) == {"sft", "pairs", "dpo", "eval"}
    assert report.peak_memory_mb > 100
    assert set(report.versions) >= {"torch", "trl", "transformers", "peft", "bitsandbytes"}


def test_the_second_sample_of_sft_is_not_its_first_one_nor_another_run_s(small_run):
    # seed 0 of three arms: base, SFT and DPO draw with 0, 1 and 2, and SFT's seed is 1 modulo 3 in every run
    work, _, _ = small_run
    again = read_records(work / "eval" / "resample.jsonl", Response)
    first = [r for r in read_records(work / "eval" / "responses.jsonl", Response) if r.arm == "sft" and r.temperature]
    assert {(r.arm, r.seed, r.temperature) for r in again} == {("sft", 0, 1.0)}
    assert {r.seed for r in first} == {1}
    assert [r.prompt_id for r in again] == [r.prompt_id for r in first]
    assert [r.text for r in again] != [r.text for r in first]


def test_a_run_whose_judge_fails_a_control_gives_no_verdict(small_run, tmp_path, monkeypatch):
    from dpo_kit import pipeline
    from dpo_kit.preferences.judges import by_score
    from dpo_kit.views.tables import table_rows
    from dpo_kit.workspace import Workspace

    work, profile, believed = small_run
    shutil.copytree(work, tmp_path / "run")
    monkeypatch.setattr("dpo_kit.triage.world.rubric_judge", lambda: by_score(lambda prompt, text: 0, "blind"))
    report = pipeline.report(Workspace(tmp_path / "run", "tiny", log=lambda line: None), profile, 0)
    assert (believed.refusal, report.refusal) == (None, "refused: control constant failed")
    assert {row[-1] for row in table_rows(report.metrics, report.refusal)} == {"refused"}
    assert json.loads((tmp_path / "run" / "report.json").read_text())["refusal"] == report.refusal
    assert f"No verdict: {report.refusal}" in (tmp_path / "run" / "report.html").read_text()


def test_pairs_are_two_answers_of_the_sft_arm_and_the_better_one_is_chosen(small_run):
    work, profile, report = small_run
    pairs = read_pairs(work / "pairs" / "pairs.jsonl")
    assert 0 < len(pairs) == report.pairs <= profile.pairs.prompts
    for pair in pairs:
        assert {pair.chosen.arm, pair.rejected.arm} == {"sft"}
        assert pair.chosen.seed != pair.rejected.seed
        assert {pair.chosen.temperature, pair.rejected.temperature} == set(profile.pairs.temperatures)
        assert rubric.overall(pair.prompt, pair.chosen.text) > rubric.overall(pair.prompt, pair.rejected.text)


def test_evaluation_prompts_are_held_out_from_everything_before(small_run):
    work, _, _ = small_run
    evaluated = read_records(work / "eval" / "prompts.jsonl", Prompt)
    trained = [p for stage in ("sft", "pairs") for p in read_records(work / stage / "prompts.jsonl", Prompt)]
    assert all(is_heldout(p.facts["service"], p.facts["region"]) for p in evaluated)
    assert not any(is_heldout(p.facts["service"], p.facts["region"]) for p in trained)
    assert not {p.text for p in evaluated} & {p.text for p in trained}


def test_every_arm_answers_every_prompt_sampled_and_greedily(small_run):
    work, profile, _ = small_run
    responses = read_records(work / "eval" / "responses.jsonl", Response)
    asked = {(r.arm, r.temperature, r.prompt_id) for r in responses}
    assert len(asked) == len(responses) == 3 * 2 * profile.evaluation.prompts
    assert {arm for arm, _, _ in asked} == {"base", "sft", "dpo"}


def test_a_second_run_builds_nothing_and_reports_the_same(small_run):
    work, profile, report = small_run
    said = []
    assert run(profile, work, log=said.append) == report
    assert said == [f"{stage}: done before, verified" for stage in ("sft", "pairs", "dpo", "eval")]


def test_a_spoilt_artefact_rebuilds_its_stage_and_what_depends_on_it(small_run):
    work, profile, report = small_run
    responses = work / "eval" / "responses.jsonl"
    whole = responses.read_text()
    responses.write_text(whole[: len(whole) // 2])
    said = []
    again = run(profile, work, log=said.append)
    assert said[:3] == [f"{stage}: done before, verified" for stage in ("sft", "pairs", "dpo")]
    assert said[3] == "eval: responses.jsonl was changed, building again"
    assert responses.read_text() == whole, "sampling is reproducible byte for byte"
    assert again.metrics == report.metrics


class Unbuilt(Workspace):
    """A workspace that builds nothing. A stage's only output is a hash of what it would be made from, as if every
    change of its settings or inputs changed its result; so it shows which stages a change reaches."""

    def stage(self, name, build, config, inputs):
        made_from = json.dumps([config, inputs], sort_keys=True, default=str)
        (self.root / name).mkdir(parents=True, exist_ok=True)
        outputs = {"made.txt": hashlib.sha256(made_from.encode()).hexdigest()}
        (self.root / name / "manifest.json").write_text(json.dumps({"outputs": outputs}))
        return self.root / name


def made_from(folder, seed=0, stages=("sft", "pairs", "dpo", "evaluate", "release"), **changes):
    """A hash for each stage of all that it would be made from, with some settings of the tiny profile changed."""
    work = Unbuilt(folder, "tiny", lambda line: None)
    for stage in stages:
        getattr(pipeline, stage)(work, load_profile("tiny", **changes), seed)
    return {folder.parent.name: folder.read_text() for folder in work.root.glob("*/manifest.json")}


ALL = {"sft", "pairs", "dpo", "eval", "release"}


@pytest.mark.parametrize(
    ("changes", "built_again"),
    [
        ({}, set()),
        ({"seed": 1}, ALL),
        *(({"model": {key: value}}, ALL) for key, value in [
            ("quantize", "none"), ("compute_dtype", "bfloat16"), ("max_length", 64), ("lora_r", 4), ("lora_alpha", 4),
            ("checkpointing", True),
        ]),
        ({"sft": {"rambling": 0.2}}, ALL),
        ({"sft": {"learning_rate": 1e-4}}, ALL),
        ({"pairs": {"prompts": 10}}, ALL - {"sft"}),
        ({"pairs": {"shuffle_labels": True}}, ALL - {"sft"}),
        ({"judge": {"kind": "simulated"}}, ALL - {"sft"}),
        ({"judge": {"length_bias": 0.5}}, ALL - {"sft"}),
        ({"dpo": {"beta": 0.5}}, {"dpo", "eval", "release"}),
        ({"dpo": {"kl_prompts": 3}}, {"dpo", "eval", "release"}),
        ({"evaluation": {"temperature": 0.5}}, {"eval"}),
    ],
    ids=lambda value: f"{len(value)} stages" if isinstance(value, set) else str(value),
)  # fmt: skip
def test_a_changed_setting_builds_the_stages_again_that_it_reaches_and_no_other(tmp_path, changes, built_again):
    before, after = made_from(tmp_path / "a"), made_from(tmp_path / "b", **changes)
    assert before.keys() == ALL
    assert {stage for stage in ALL if before[stage] != after[stage]} == built_again


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_new_external_pairs_reach_sft_dpo_and_the_release(tmp_path, kind):
    source = tmp_path / "mine" / "pairs.jsonl"
    source.parent.mkdir()
    data = {"pairs": str(source if kind == "file" else source.parent)}
    built = []
    for number, text in enumerate(("old", "new")):
        source.write_text(text)
        built.append(made_from(tmp_path / str(number), stages=("sft", "dpo", "release"), data=data))
    old, new = built
    assert old.keys() == new.keys() == ALL - {"eval"}, "SFT on external pairs has them read first"
    assert not [stage for stage in old if old[stage] == new[stage]]


def test_another_base_reaches_every_stage(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    built = []
    for weights in ("old", "new"):
        (base / "model.safetensors").write_text(weights)
        built.append(made_from(tmp_path / weights, model={"path": str(base)}))
    old, new = built
    assert not [stage for stage in ALL if old[stage] == new[stage]]


def test_a_stage_whose_input_was_never_built_says_which(tmp_path):
    work = Workspace(tmp_path, "tiny", log=lambda line: None)
    with pytest.raises(DpoKitError, match="the stage 'sft' is not finished; build it first"):
        pipeline.pairs(work, load_profile("tiny"), 0)


def test_shuffled_labels_keep_the_prompts_and_lose_the_truth(small_run, small_profile, tmp_path):
    shuffled = load_profile("tiny", pairs={**small_profile.pairs.model_dump(), "shuffle_labels": True})
    shuffled = small_profile.model_copy(update={"pairs": shuffled.pairs})
    work = Workspace(tmp_path, "tiny", log=lambda line: None)
    pipeline.sft(work, shuffled, 0)
    mixed = {p.prompt.id: p for p in read_pairs(pipeline.pairs(work, shuffled, 0) / "pairs.jsonl")}
    judged = {p.prompt.id: p for p in read_pairs(small_run[0] / "pairs" / "pairs.jsonl")}
    assert mixed.keys() == judged.keys()
    kept = [mixed[name].chosen == judged[name].chosen for name in judged]
    assert 0 < sum(kept) < len(kept)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "tinny"], "unknown profile 'tinny'; did you mean 'tiny'?"),
        (["--workdir", "/proc/nowhere"], "/proc/nowhere: cannot write here"),
    ],
)
def test_what_the_reader_can_put_right_is_one_line_and_exit_code_2(arguments, message, capsys):
    assert main(["run", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_workdir_of_another_profile_is_one_line_and_exit_code_2(tmp_path, capsys):
    (tmp_path / "profile.json").write_text('{"profile": "gpu-24gb"}')
    assert main(["run", "--workdir", str(tmp_path)]) == 2
    assert "made by profile 'gpu-24gb', not 'tiny'" in capsys.readouterr().err


@pytest.mark.parametrize("spoil", ["missing", "corrupt"])
def test_a_missing_or_corrupt_shipped_model_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, spoil):
    folder = tmp_path / "data" / "tiny-base"
    if spoil == "corrupt":
        shutil.copytree(DATA / "tiny-base", folder)
        (folder / "model.safetensors").write_bytes(b"not a model")
    monkeypatch.setattr("dpo_kit.profiles.DATA", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--workdir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert "restore it with git, or rebuild it: python -m dpo_kit pretrain" in error


@pytest.mark.parametrize("command", ["run", "train"])
@pytest.mark.parametrize("fresh", [True, False])
def test_fresh_and_only_fresh_removes_the_stages_that_are_there(command, fresh, monkeypatch, tmp_path):
    done = tmp_path / "sft" / "manifest.json"
    done.parent.mkdir()
    done.touch()
    found = []

    def first_stage(work, profile, seed):
        found.append(done.exists())
        raise KeyboardInterrupt

    monkeypatch.setitem(pipeline.OWN_WORLD, "sft", first_stage)
    assert main([command, "--workdir", str(tmp_path), *["--fresh"] * fresh]) == 130
    assert found == [not fresh]


def test_ctrl_c_says_that_finished_work_is_kept(monkeypatch, capsys, tmp_path):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setitem(pipeline.OWN_WORLD, "sft", interrupted)
    assert main(["run", "--workdir", str(tmp_path)]) == 130
    assert "run the same command again to go on" in capsys.readouterr().err


def test_the_module_is_a_command_line():
    shown = subprocess.run([sys.executable, "-m", "dpo_kit", "--help"], capture_output=True, text=True, check=True)
    assert "run" in shown.stdout
    assert "pretrain" in shown.stdout


def test_no_pair_at_all_is_said(small_profile, tmp_path, monkeypatch):
    from dpo_kit.preferences.judges import by_score

    monkeypatch.setattr("dpo_kit.triage.world.rubric_judge", lambda: by_score(lambda prompt, text: 0, "blind"))
    with pytest.raises(DpoKitError, match="gave no pair"):
        run(small_profile, tmp_path, log=lambda line: None)


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_report(small_run, tmp_path):
    work, profile, report = small_run
    (tmp_path / "profile.json").write_text(profile.model_dump_json())
    script = (
        "import sys; from pathlib import Path; from dpo_kit.pipeline import run; from dpo_kit.profiles import Profile\n"
        f"profile = Profile.model_validate_json(Path({str(tmp_path / 'profile.json')!r}).read_text())\n"
        f"run(profile, Path({str(tmp_path / 'run')!r}))\n"
    )
    for seconds in (9, 12, 15, 18):  # importing takes the first few
        child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    again = read_report(tmp_path / "run" / "report.json")
    assert again.metrics == report.metrics
    assert again.pairwise == report.pairwise
    for name in ("sft/adapter", "pairs", "dpo/adapter"):
        assert hashes(tmp_path / "run" / name, skip=MADE_ONCE) == hashes(work / name, skip=MADE_ONCE), name
