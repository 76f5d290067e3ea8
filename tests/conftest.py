"""Every test runs offline, quietly, and with the CPU threads it is given."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TQDM_DISABLE", "1")

import pytest

from dpo_kit.profiles import load_profile
from dpo_kit.triage.reports import draw_prompts

SMALL = {
    "sft": {"demonstrations": 64},
    "pairs": {"prompts": 24, "max_new_tokens": 48},
    "dpo": {"batch_size": 4, "kl_prompts": 4, "kl_every": 2, "warmup_share": 0.0},
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
    report = run(small_profile, workdir, seed=0, say=lambda line: None)
    return workdir, small_profile, report
