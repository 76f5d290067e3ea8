"""Settings for all tests: no network, no progress bars, and a limited number of CPU threads."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TQDM_DISABLE", "1")

from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import settings

from dpo_kit.profiles import ROOT, load_profile
from dpo_kit.triage.reports import draw_prompts
from tests.canary import CANARY, VARIABLES, assert_no_canary

os.environ |= dict.fromkeys(VARIABLES, CANARY)  # no test and no notebook may write a key anywhere
settings.register_profile("untimed", deadline=None)  # a slow machine is no wrong answer
settings.load_profile("untimed")
WRITTEN = [ROOT / "notebooks", ROOT / "runs"]

SMALL = {
    "sft": {"demonstrations": 64},
    "pairs": {"prompts": 24, "heldout_prompts": 6, "max_new_tokens": 48},
    "dpo": {"batch_size": 4, "kl_prompts": 4, "kl_every": 2, "save_every": 2, "warmup_share": 0.0},
    "evaluation": {"prompts": 8, "max_new_tokens": 48},
}


@pytest.fixture(scope="session")
def small_profile():
    """The tiny profile, shrunk until the whole path takes seconds."""
    return load_profile("tiny", **SMALL)


@pytest.fixture(scope="session")
def incidents():
    """A few hundred training prompts."""
    return draw_prompts(300, "train", "test", 0)


@pytest.fixture(scope="session")
def small_run(small_profile, tmp_path_factory):
    """The whole path once, on the small profile: its workdir, its profile and its report."""
    from dpo_kit.pipeline import run

    workdir = tmp_path_factory.mktemp("runs") / "small"
    report = run(small_profile, workdir, seed=0, log=lambda line: None)
    return workdir, small_profile, report


@pytest.fixture(scope="session")
def comparison(incidents):
    """A comparison without a model, on 120 prompts: people in a hurry against more careful ones.

    Prompts, responses, the report with its rows, and a log of a training.
    """
    from dpo_kit.evaluation.harness import evaluate_answers
    from dpo_kit.preferences.judges import both_orders, by_score
    from dpo_kit.training.metrics_log import read_log
    from dpo_kit.triage import rubric
    from dpo_kit.triage.demonstrations import Noise, demonstrate

    prompts = incidents[:120]
    responses = []
    for seed, (arm, rate) in enumerate({"base": 0.9, "sft": 0.5, "dpo": 0.15}.items()):
        noise = Noise(
            wrong_severity=rate, invented_fact=rate, wrong_action=rate / 2, broken_format=rate / 2, rambling=0.1
        )
        made = demonstrate(prompts, noise, seed)
        responses += [r.model_copy(update={"arm": arm, "temperature": 1.0, "seed": seed}) for r in made]
    judge = both_orders(by_score(rubric.overall, "rubric"))
    report = evaluate_answers(prompts, responses, rubric.score, judge, temperature=1.0)
    log = read_log(ROOT / "data" / "runs" / "tiny" / "dpo_log.jsonl")
    return SimpleNamespace(prompts=prompts, responses=responses, report=report, log=log)


@pytest.fixture(scope="session")
def real_data():
    """The folder of real third-party data."""
    return find_real_data()


def find_real_data() -> Path:
    """The folder of real third-party data, which may not be part of the repository.

    Whoever sets `DPO_KIT_REAL_DATA` wants these tests to run, so they fail where the folder is absent. Without it they
    are skipped there, so that the tests of a fork pass.
    """
    named = os.environ.get("DPO_KIT_REAL_DATA")
    folder = Path(named or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        (pytest.fail if named else pytest.skip)(f"{folder} is absent: set DPO_KIT_REAL_DATA to the real data")
    return folder


def pytest_sessionfinish(session):
    """Fail the run where a planted key stands in any file that tests or notebooks wrote.

    Where tests run in several processes, the first process looks, after all others, into the folder of them all.
    """
    if hasattr(session.config, "workerinput"):
        return
    for folder in [*WRITTEN, session.config._tmp_path_factory.getbasetemp()]:
        try:
            assert_no_canary(folder)
        except AssertionError as found:
            print(f"\n{found}")
            session.exitstatus = 1
