"""`train` makes a released adapter from pairs in any format, and reports errors before it trains anything."""

import json
import re
import shutil
from pathlib import Path

import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch

from dpo_kit.cli import main, parser, train
from dpo_kit.cli.train import _own_folder, profile_of
from dpo_kit.errors import DpoKitError
from dpo_kit.files import hashes
from dpo_kit.jsonl import read_pairs, read_records
from dpo_kit.models.memory import Speed
from dpo_kit.pipeline import chosen_answers, run
from dpo_kit.preferences.importers import load_external_pairs
from dpo_kit.profiles import DATA, load_profile
from dpo_kit.records import Response

SMALL = [
    "data.heldout=0.25", "model.checkpointing=true", "sft.batch_size=4", "sft.max_tokens=512", "sft.learning_rate=1e-4",
    "dpo.batch_size=4", "dpo.max_tokens=1024", "dpo.kl_prompts=2", "dpo.kl_every=3", "dpo.save_every=2",
    "pairs.max_new_tokens=16",
]  # fmt: skip
WORDS = (
    "pump", "valve", "relay", "sensor", "turbine", "boiler", "fan", "motor", "belt", "gauge", "pipe", "tank", "filter",
    "clutch", "brake", "lamp",
)  # fmt: skip


def rows(count=16):
    """Pairs that differ in more than numbers, so that none is a near-duplicate of another."""
    asked = [f"What does the {word} of unit {i} need after {WORDS[-i - 1]} failed?" for i, word in enumerate(WORDS)]
    return [
        {
            "prompt": asked[i],
            "chosen": f"Check the {WORDS[i]}, then the {WORDS[i - 3]}.",
            "rejected": f"Ignore {WORDS[i - 5]}.",
        }
        for i in range(count)
    ]


def chat(row):
    """The row in the columns of UltraFeedback-binarized."""
    sides = {
        side: [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]
        for side in ("chosen", "rejected")
    }
    scores = {"score_chosen": 8.0, "score_rejected": 3.0}
    return {"prompt": row["prompt"], "prompt_id": row["prompt"], **sides, "messages": sides["chosen"], **scores}


def write_jsonl(path, made):
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def gathered(tmp_path, **data):
    profile = load_profile("tiny", data={"heldout": 0.25, **data})
    said = []
    trained, held_out, _ = load_external_pairs(profile, tmp_path / "bad.jsonl", 0, said.append)
    return trained, held_out, said


def texts(pairs):
    return {(pair.prompt.text, pair.chosen.text, pair.rejected.text) for pair in pairs}


EXPECTED = {tuple(row.values()) for row in rows()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A whole training on sixteen own pairs, by the command line, and the arguments."""
    folder = tmp_path_factory.mktemp("own")
    arguments = [
        "train",
        "--profile",
        "tiny",
        "--pairs",
        str(write_jsonl(folder / "own.jsonl", rows())),
        "--set",
        *SMALL,
    ]
    arguments += ["--workdir", str(folder / "run"), "--seed", "3"]
    assert main(arguments) == 0
    return folder / "run", arguments


def test_own_pairs_end_in_a_released_adapter(trained):
    work, _ = trained
    kept, held_out = (read_pairs(work / "pairs" / f"{name}.jsonl") for name in ("pairs", "heldout"))
    assert texts(kept) | texts(held_out) == EXPECTED
    assert kept
    assert held_out
    assert not {pair.prompt.id for pair in kept} & {pair.prompt.id for pair in held_out}
    assert (work / "release" / "adapter" / "adapter_model.safetensors").is_file()
    assert "own.jsonl" in (work / "release" / "adapter" / "README.md").read_text()
    assert json.loads((work / "release" / "proof.json").read_text())["distance"] < 1e-4


def test_sft_learns_the_chosen_answers_and_no_held_out_one(trained):
    work, _ = trained
    demonstrated = {response.text for response in read_records(work / "sft" / "demonstrations.jsonl", Response)}
    assert demonstrated == {pair.chosen.text for pair in read_pairs(work / "pairs" / "pairs.jsonl")}


def test_margins_and_kl_are_measured_on_held_out_prompts(trained):
    work, _ = trained
    log = [json.loads(line) for line in (work / "dpo" / "log.jsonl").read_text().splitlines()]
    assert any("eval_rewards/margins" in row for row in log)
    asked = {sample["prompt"] for row in log for sample in row.get("answers/samples", [])}
    assert asked
    assert asked <= {pair.prompt.text for pair in read_pairs(work / "pairs" / "heldout.jsonl")}


def test_the_same_command_again_builds_nothing(trained, capsys):
    work, arguments = trained
    before = hashes(work / "release")
    capsys.readouterr()
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert [f"{stage}: done before, verified" in said for stage in ("sft", "pairs", "dpo", "release")] == [True] * 4
    assert hashes(work / "release") == before


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--set", "dpo.beta=0.5"], "dpo.beta was 0.1 and is now 0.5"),
        (["--set", "sft.learning_rate=2e-4"], "sft.learning_rate was 0.0001 and is now 0.0002"),
        (["--seed", "4"], "seed was 3 and is now 4"),
    ],
    ids=["beta", "rate", "seed"],
)
def test_a_finished_run_is_not_replaced_by_one_of_other_settings(trained, capsys, changed, said):
    work, arguments = trained
    before = hashes(work)
    capsys.readouterr()
    assert main([*arguments, *changed]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "--fresh" in error
    assert hashes(work) == before


def test_a_finished_run_is_not_replaced_by_one_of_other_pairs(trained, tmp_path, capsys):
    work, arguments = trained
    before, other = hashes(work), write_jsonl(tmp_path / "other.jsonl", rows(12))
    capsys.readouterr()
    assert main([*arguments, "--pairs", str(other)]) == 2
    assert "data.pairs was" in capsys.readouterr().err
    assert hashes(work) == before


def test_fresh_replaces_a_finished_run_and_keeps_other_files(trained, tmp_path, capsys):
    work, arguments = trained
    again = shutil.copytree(work, tmp_path / "run")
    (again / "notes.txt").write_text("mine")
    assert main([*arguments, "--workdir", str(again), "--fresh", "--set", "dpo.beta=0.5", "sft.skip=true"]) == 0
    said = capsys.readouterr().out
    assert "DPO starts from data/tiny-base as it is, which is also its reference" in said
    assert "margin on held-out pairs" in said
    assert re.search(r"dpo: 1\d pairs are few", said)
    assert f"--arms base=base sft={again}/sft/adapter dpo={again}/release/adapter" in said
    record = json.loads((again / "release" / "adapter" / "dpo_kit.json").read_text())
    assert record["dpo"]["beta"] == 0.5
    assert (again / "notes.txt").read_text() == "mine"


def test_sft_learns_the_demonstrations_of_a_file_but_those_with_held_out_prompts(trained, tmp_path, capsys):
    work, arguments = trained
    measured = read_pairs(work / "pairs" / "heldout.jsonl")[0].prompt.text
    asked = [measured, *(f"How is the {word} cleaned?" for word in WORDS[:7])]
    answers = [f"With a dry cloth, {i} times a year." for i in range(8)]
    shown = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in zip(asked, answers, strict=True)
    ]
    file = write_jsonl(tmp_path / "shown.jsonl", shown)
    assert main([*arguments, "--workdir", str(tmp_path / "run"), "--set", f"sft.data={file}"]) == 0
    assert "sft: 7 of 8 demonstrations in shown.jsonl (1 have held-out prompts" in capsys.readouterr().out
    learnt = read_records(tmp_path / "run" / "sft" / "demonstrations.jsonl", Response)
    assert [response.text for response in learnt] == answers[1:]


def test_only_one_start_can_be_named_and_a_file_of_demonstrations_must_be_there(trained, tmp_path, capsys):
    _, arguments = trained
    own = [*arguments, "--workdir", str(tmp_path)]
    assert main([*own, "--set", "sft.skip=true", "sft.data=x.jsonl"]) == 2
    assert "skip and data say different things" in capsys.readouterr().err
    assert main([*own, "--set", f"sft.data={tmp_path / 'x.jsonl'}"]) == 2
    assert "x.jsonl: there is no such file" in capsys.readouterr().err
    assert not (tmp_path / "sft").exists()


def test_dpo_goes_on_from_an_adapter_that_is_named(trained, tmp_path, capsys):
    work, arguments = trained
    start = work / "release" / "adapter"
    assert main([*arguments, "--workdir", str(tmp_path), "--set", f"sft.from={start}"]) == 0
    assert f"DPO starts from the adapter in {start}, which is also its reference" in capsys.readouterr().out
    assert (
        hashes(tmp_path / "sft" / "adapter")["adapter_model.safetensors"] == hashes(start)["adapter_model.safetensors"]
    )
    assert json.loads((tmp_path / "dpo" / "start.json").read_text())["margin"] == 0


def test_a_training_gets_a_folder_of_its_own_and_finds_it_again(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("DPO_KIT_RUNS", str(tmp_path))
    _, arguments = trained
    profile = profile_of(parser().parse_args(arguments))
    mine, other = parser().parse_args(arguments), parser().parse_args([*arguments, "--seed", "4"])
    first = _own_folder(profile, mine)
    assert re.fullmatch(r"tiny-own-\d{4}-\d\d-\d\d", first.name)
    assert _own_folder(profile, mine) == first
    second = _own_folder(profile, other)
    assert second.name == f"{first.name}-2"
    mine.fresh = True
    assert _own_folder(profile, mine).name == f"{first.name}-3"
    assert (tmp_path / "latest").resolve().name == f"{first.name}-3"


def test_a_profile_for_a_gpu_is_not_trained_on_a_cpu_by_accident(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "plan_memory", lambda profile: {"free_bytes": None, "memory": {}, "model": "m"})
    pairs = str(write_jsonl(tmp_path / "own.jsonl", rows()))
    assert main(["train", "--profile", "gpu-8gb", "--pairs", pairs, "--workdir", str(tmp_path / "run")]) == 2
    assert "profile gpu-8gb is for a CUDA card, and no card is visible here" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet", "folder"])
def test_every_form_of_the_same_pairs_gives_the_same_pairs(tmp_path, form):
    source = tmp_path / f"own.{form}"
    table = pyarrow.Table.from_pylist(rows())
    if form == "jsonl":
        write_jsonl(source, rows())
    elif form == "csv":
        pyarrow.csv.write_csv(table, source)
    elif form == "parquet":
        pyarrow.parquet.write_table(table, source)
    else:  # as the Hub holds UltraFeedback-binarized, read by `datasets.load_dataset` as from there
        source = tmp_path / "ultrafeedback"
        (source / "data").mkdir(parents=True)
        chats = pyarrow.Table.from_pylist([chat(row) for row in rows()])
        pyarrow.parquet.write_table(chats, source / "data" / "train_prefs-00000-of-00001.parquet")
    kept, held_out, _ = gathered(tmp_path, pairs=str(source), split="train_prefs")
    assert texts(kept) | texts(held_out) == EXPECTED


def test_a_limit_reads_the_first_rows(tmp_path):
    kept, held_out, _ = gathered(tmp_path, pairs=str(write_jsonl(tmp_path / "own.jsonl", rows())), limit=5)
    assert texts(kept) | texts(held_out) == {tuple(row.values()) for row in rows(5)}


def test_a_blocking_fault_stops_or_is_dropped_and_counted(tmp_path):
    same = {"prompt": "What now?", "chosen": "Nothing at all.", "rejected": "Nothing at all."}
    source = str(write_jsonl(tmp_path / "own.jsonl", [*rows(), same]))
    with pytest.raises(DpoKitError, match=r"identical answers 1.*16 other pairs with --set data.on_blocking=drop"):
        gathered(tmp_path, pairs=source)
    kept, held_out, said = gathered(tmp_path, pairs=source, on_blocking="drop")
    assert texts(kept) | texts(held_out) == EXPECTED
    assert any("16 of 17 kept, dropped for identical answers 1" in line for line in said)


def test_a_line_that_cannot_be_read_is_put_aside_with_its_reason(tmp_path):
    source = write_jsonl(tmp_path / "own.jsonl", rows())
    source.write_text(source.read_text() + '{"prompt": "cut of')
    kept, held_out, said = gathered(tmp_path, pairs=str(source))
    assert texts(kept) | texts(held_out) == EXPECTED
    assert any("1 rows put aside" in line for line in said)
    assert "17" in (tmp_path / "bad.jsonl").read_text()


def test_a_chosen_answer_is_demonstrated_once(tmp_path):
    kept, _, _ = gathered(tmp_path, pairs=str(write_jsonl(tmp_path / "own.jsonl", rows())))
    prompts, demonstrations = chosen_answers([*kept, *kept], most=1000)
    assert [d.text for d in demonstrations] == [pair.chosen.text for pair in kept]
    assert [p.id for p in prompts] == [d.prompt_id for d in demonstrations]
    assert len(chosen_answers(kept, most=2)[0]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (
            ["--pairs", "nobody/no-such-data"],
            "nobody/no-such-data: no file or folder, and no data set on the Hub with a split 'train'",
        ),
        (["--set", "dpo.bta=1"], "unknown key dpo.bta; did you mean 'beta'?"),
        (["--set", "dpo"], "'dpo' sets nothing; write TABLE.KEY=VALUE"),
        (["--model", "nobody/none"], "nobody/none: no model configuration there"),
    ],
)
def test_what_the_reader_can_put_right_is_one_line_and_exit_code_2(arguments, message, tmp_path, capsys):
    assert main(["train", "--profile", "tiny", "--workdir", str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


@pytest.fixture
def plan(tmp_path, monkeypatch, capsys):
    """Plans with the tiny profile on a machine of known speed: the exit code, what is printed, and the same as JSON."""
    monkeypatch.setattr("dpo_kit.models.memory.calibrate", lambda profile: Speed(forward=1.0, both=3.0))

    def run(*arguments):
        command = ["train", "--profile", "tiny", "--plan", "--workdir", str(tmp_path / "run"), *arguments]
        code, told = main(command), capsys.readouterr()
        main([*command, "--json"])
        assert not (tmp_path / "run").exists(), "a plan trains nothing"
        return code, told.out + told.err, json.loads(capsys.readouterr().out)

    return run


def test_a_plan_reads_the_file_and_reckons_with_its_rows(plan, tmp_path):
    source = write_jsonl(tmp_path / "own.jsonl", rows())
    source.write_text(source.read_text() + '{"prompt": "cut of')
    code, said, data = plan("--pairs", str(source))
    assert code == 0
    assert "pairs: trl-standard: 16 pairs from 17 rows" in said
    assert "pairs: 1 rows put aside" in said
    assert "data/tiny-base needs about" in said
    assert "time: dpo at most about 9.1 hours" in said
    assert (data["rows"], data["pairs"]) == (17, 16)
    # 16 pairs of two sides of 256 tokens, each 3 s for forward and backward, and 1 s for the reference
    assert data["hours"]["dpo"] == pytest.approx(16 * 2 * 256 * (3 + 1) / 3600)
    assert data["hours"]["sft"] == pytest.approx(16 * 256 * 3 / 3600)
    assert data["memory"].keys() == {"sft", "dpo"}
    assert plan("--pairs", str(source), "--set", "data.limit=5")[2]["pairs"] == 5


def test_a_plan_reads_a_folder_as_the_training_does(plan, tmp_path):
    (tmp_path / "own").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows(7)), tmp_path / "own" / "train.parquet")
    assert plan("--pairs", str(tmp_path / "own"))[2]["pairs"] == 7


@pytest.mark.parametrize("source", ["nowhere.jsonl", "./nowhere", "some/where/else", "nowhere.tsv"])
def test_a_plan_for_a_file_that_is_not_there_is_refused(plan, source):
    code, said, data = plan("--pairs", source)
    assert code == 2
    assert f"{Path(source)}: no such file" in said or f"{source}: no file or folder" in said
    assert data == {"error": said.removeprefix("error: ").strip()}


def test_a_plan_for_a_data_set_on_the_hub_says_that_it_was_not_read(plan):
    code, said, data = plan("--pairs", "somebody/preferences", "--set", "data.limit=100")
    assert code == 0
    assert "somebody/preferences: no such folder here, so taken for a data set on the Hub; not read" in said
    assert (data["rows"], data["pairs"]) == (None, 100)
    assert plan("--pairs", "somebody/preferences")[2]["hours"] == {}


def test_a_plan_for_the_own_world_reckons_with_what_will_be_sampled(plan):
    profile = load_profile("tiny")
    data = plan()[2]
    assert data["pairs"] == profile.pairs.prompts
    assert data["hours"]["sft"] == pytest.approx(profile.sft.demonstrations * 256 * 3 / 3600)


@pytest.mark.parametrize("more", [[], ["--plan"]], ids=["train", "plan"])
def test_a_model_that_does_not_fit_the_card_is_refused_before_anything_is_made(more, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10_000_000, 10_000_000))
    arguments = ["--pairs", str(write_jsonl(tmp_path / "own.jsonl", rows())), "--workdir", str(tmp_path / "run")]
    assert main(["train", "--profile", "tiny", *arguments, *more]) == 2
    assert "profile tiny needs" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_gpu_profile_is_planned_without_a_gpu_or_a_network(capsys):
    model = str(DATA / "tiny-base")
    assert main(["train", "--profile", "gpu-8gb", "--model", model, "--plan"]) == 0
    said = capsys.readouterr().out
    assert "needs about" in said
    assert "time: dpo at most about" in said


def test_the_result_of_a_training_as_json_names_the_adapter_and_its_proof(trained, capfd):
    work, arguments = trained
    capfd.readouterr()
    assert main([*arguments, "--json"]) == 0
    told = capfd.readouterr()
    result = json.loads(told.out)
    assert result["adapter"] == str(work / "release" / "adapter")
    assert result["proof"] == json.loads((work / "release" / "proof.json").read_text())
    assert "dpo: done before, verified" in told.err


def test_the_comparison_of_run_is_for_the_workbooks_own_world(tmp_path):
    profile = load_profile("tiny", data={"pairs": "own.jsonl"})
    with pytest.raises(DpoKitError, match="no exact rubric to be compared by: use `train`, then `evaluate`"):
        run(profile, tmp_path)
