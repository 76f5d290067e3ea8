"""The `evaluate` command on a reader's own arms, prompts and judges, as the command line is used."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dpo_kit.cli import main
from dpo_kit.jsonl import write_records
from dpo_kit.models.servers import Budget
from dpo_kit.records import Response
from dpo_kit.triage.incidents import Incident
from dpo_kit.views.report import read_report

QUESTIONS = [{"prompt": f"What is {n} plus {n}?"} for n in range(12)]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def ready(path, arm, texts):
    """Ready answers: prompt id -> text."""
    write_records(path, [Response(prompt_id=name, text=text, arm=arm) for name, text in texts.items()])
    return f"{arm}={path}"


def evaluate(tmp_path, arms, prompts, *more):
    code = main(["evaluate", "--arms", *arms, "--prompts", prompts, "--out", str(tmp_path / "out"), *more])
    report = tmp_path / "out" / "report.json"
    return code, read_report(report) if report.exists() else None


@pytest.fixture
def triage(incidents, tmp_path):
    """Twenty incidents on disk, and two arms of ready answers: `right`, and `brief`, which names the severity alone."""
    prompts = incidents[:20]
    write_records(tmp_path / "prompts.jsonl", prompts)
    truth = {p.id: Incident.from_facts(p.facts).answer for p in prompts}
    arms = [
        ready(tmp_path / "brief.jsonl", "brief", {name: text.split("\n")[0] for name, text in truth.items()}),
        ready(tmp_path / "right.jsonl", "right", truth),
    ]
    return arms, str(tmp_path / "prompts.jsonl")


def test_the_last_two_arms_are_compared_by_the_rubric(triage, tmp_path, capsys):
    code, report = evaluate(tmp_path, *triage, "--judge", "rubric")
    assert code == 1, "a control refuses"
    assert report.primary == ("right", "brief")
    assert report.metrics["severity_match"].means == {"brief": 1, "right": 1}
    assert report.pairwise.wins == 20
    names = [control.name for control in report.controls]
    assert {"identical", "shuffled", "padded"} <= set(names)
    assert "resample" not in names, "ready answers have no second sample"
    out = capsys.readouterr().out
    assert "With 80% power" in out
    assert (tmp_path / "out" / "report.html").exists()


def test_a_harness_that_fails_a_control_gives_no_verdict(triage, tmp_path, capsys):
    # `brief` is one of four texts, and of one length: nobody may win against it or lose
    code, report = evaluate(tmp_path, *triage, "--judge", "rubric", "--primary", "brief", "right")
    assert code == 1, "a control refuses"
    assert "varied answers of brief" in report.refusal
    assert "refused" in capsys.readouterr().out


def test_other_prompts_need_no_facts_and_get_no_rubric(tmp_path):
    prompts = write_rows(tmp_path / "questions.jsonl", QUESTIONS)
    right = {str(n + 1): f"It is {2 * n}, since twice {n} is that." for n in range(12)}
    late = {str(n + 1): "x" * (n + 1) for n in range(7)}
    arms = [ready(tmp_path / "a.jsonl", "a", right), ready(tmp_path / "b.jsonl", "b", late)]
    code, report = evaluate(tmp_path, arms, prompts, "--judge", "none")
    assert code == 0
    assert (report.metrics, report.pairwise) == ({}, None)
    assert report.missing["b"].count == 5
    assert report.missing["b"].reason == "5 times temperature 1: no answer in b.jsonl"
    assert report.characters["b"] == 4
    assert [control.name for control in report.controls] == ["varied answers of a", "varied answers of b"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--judge", "rubric"], "--judge rubric needs the facts of incidents"),
        (["--judge", "none", "--samples", "0"], "one answer a prompt is the least"),
        (["--judge", "none", "--primary", "a", "c"], "arm 'c' is not there"),
        (
            ["--judge", "openai", "--judge-model", "m", "--judge-url", "ftp://nowhere"],
            "judge: the server's URL is not a plain",
        ),
        (["--judge", "none", "--samples", "2", "--temperature", "0"], "at temperature 0 all of them would be the same"),
        (["--judge", "none", "--temperature", "-1"], "--temperature -1: 0 is greedy decoding"),
        (["--judge", "none", "--max-new-tokens", "0"], "evaluation.max_new_tokens = 0"),
        (["--judge", "none", "--set", "model.quantise=nf4"], "unknown key model.quantise"),
        (["--judge", "none", "--criteria", "helpful"], "--criteria is read by a language model or a person"),
        (["--judge", "person", "--criteria", "kind"], "one of the names faithful, harmless, helpful, honest"),
        (["--judge", "person", "--annotator", " "], "give a name that can be read"),
        (["--judge", "none", "--rate"], "--rate needs a language model"),
        (["--judge", "none", "--controls", "-5"], "--controls -5: give the number of prompts"),
        (["--judge", "none", "--regression"], "arm b is a file of ready answers"),
        (["--judge", "none", "--primary", "a", "a"], "--primary: a is compared with itself"),
        (["--judge", "score"], "give --score FILE.py:FUNCTION too"),
        (["--judge", "none", "--score", "absent.py:f"], "there is no file absent.py"),
        (["--judge", "none", "--heldout-pairs", "PAIRS"], "arm a is the reference and has no weights here"),
    ],
)
def test_what_the_reader_can_put_right_is_one_line(tmp_path, capsys, more, message):
    prompts = write_rows(tmp_path / "questions.jsonl", QUESTIONS)
    answers = {str(n + 1): f"It is {2 * n}." for n in range(12)}
    arms = [ready(tmp_path / f"{name}.jsonl", name, answers) for name in "ab"]
    pair = {"prompt": "?", "chosen": "yes", "rejected": "no"}
    pairs = write_rows(tmp_path / "pairs.jsonl", [pair])
    code, report = evaluate(tmp_path, arms, prompts, *(pairs if word == "PAIRS" else word for word in more))
    error = capsys.readouterr().err
    assert (code, report) == (2, None)
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("row", [{"asked": "?"}, {"prompt": 3}, {"messages": []}, {"messages": ["?"]}])
def test_a_row_that_is_no_prompt_is_named(tmp_path, capsys, row):
    prompts = write_rows(tmp_path / "questions.jsonl", [QUESTIONS[0], row])
    arms = [ready(tmp_path / f"{name}.jsonl", name, {"1": "x"}) for name in "ab"]
    assert evaluate(tmp_path, arms, prompts, "--judge", "none")[0] == 2
    assert "line 2" in capsys.readouterr().err


class HalfWay(BaseHTTPRequestHandler):
    """Says the same to the first questions, and refuses all others: a quota that ran out."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][-1]["content"]
        with self.server.lock:
            self.server.quota -= 1
            answered = self.server.quota >= 0
            self.server.asked.append(body)
        message = {"role": "assistant", "content": self.server.says or f"To {question} I say 7"}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        reply = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        sent = json.dumps(reply if answered else {"error": {"message": "quota"}}).encode()
        self.send_response(200 if answered else 403)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *args):
        pass


class Url(str):
    """An address, with the requests that came in there."""

    def __new__(cls, text, asked):
        url = super().__new__(cls, text)
        url.asked = asked
        return url


@pytest.fixture
def endpoint(monkeypatch, request):
    """The URL of a server that answers as many questions as the test's parameter says, perhaps with the text there."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), HalfWay)
    server.lock, server.asked = threading.Lock(), []
    server.quota, server.says = request.param if isinstance(request.param, tuple) else (request.param, None)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Url(f"http://127.0.0.1:{server.server_port}/v1", server.asked)
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("endpoint", [5], indirect=True)
def test_an_endpoint_that_fails_half_way_leaves_a_report_of_what_is_missing(tmp_path, endpoint, capsys):
    prompts = write_rows(tmp_path / "questions.jsonl", QUESTIONS)
    ours = ready(tmp_path / "a.jsonl", "a", {str(n + 1): "I say " + "8" * n for n in range(12)})
    code, report = evaluate(tmp_path, [ours, f"served={endpoint}#m"], prompts, "--judge", "none")
    assert code == 1, "a control refuses"
    assert report.missing["served"].count == 7
    assert "403" in report.missing["served"].reason
    assert "served has no answer to 7 of 12 prompts" in " ".join(capsys.readouterr().out.split())
    assert "no answer to 7 of 12 prompts" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("endpoint", [10**6], indirect=True)
def test_a_judge_that_says_nothing_of_use_decides_nothing(triage, tmp_path, endpoint, capsys):
    more = ("--judge", "openai", "--judge-model", "m", "--judge-url", endpoint, "--rate", "--controls", "3")
    code, report = evaluate(tmp_path, *triage, *more)
    assert code == 1, "a control refuses"
    assert report.pairwise.unjudged == 20
    assert report.unscored == {"brief": 20, "right": 20}
    assert "judge_score" not in report.metrics
    assert "identical" in report.refusal
    assert report.unjudged_because == {"malformed reply: not one JSON object": 20}
    assert "why: 20 times malformed reply" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("endpoint", [(10**6, '{"reason": "both are fine", "winner": "tie"}')], indirect=True)
def test_criteria_reach_the_judge_by_name_and_from_a_file(triage, tmp_path, endpoint):
    judge = ("--judge", "openai", "--judge-model", "m", "--judge-url", endpoint, "--controls", "2")
    (tmp_path / "mine.txt").write_text("Prefer the answer that names a colour.")
    for named, words in (("faithful", "faithful to the text"), (str(tmp_path / "mine.txt"), "names a colour")):
        before = len(endpoint.asked)
        _, report = evaluate(tmp_path, *triage, *judge, "--criteria", named)
        assert report.pairwise.ties == 20
        asked = endpoint.asked[before:]
        assert asked, "other criteria are another question, which is asked again"
        assert all(words in body["messages"][0]["content"] for body in asked)


@pytest.mark.parametrize("endpoint", [10**6], indirect=True)
def test_judging_and_rating_together_cost_no_more_than_max_dollars(triage, tmp_path, endpoint, monkeypatch):
    """The server bills nothing that it says, so each request counts as what it could cost at most: about .0014."""
    settle, spent = Budget.settle, []
    monkeypatch.setattr(Budget, "settle", lambda self, *both: spent.append(both[1]) or settle(self, *both))
    judged = ("--judge", "openai", "--judge-model", "m", "--judge-url", endpoint, "--rate", "--max-dollars", "0.02")
    assert evaluate(tmp_path, *triage, *judged, "--controls", "3")[0] == 1, "a control refuses"
    assert 0.01 < sum(spent) <= 0.02


FIRST = '{"reason": "it comes first", "winner": "A"}'


@pytest.mark.parametrize("endpoint", [(10**6, FIRST)], indirect=True)
def test_a_judge_that_always_takes_the_first_answer_is_asked_in_both_orders_and_decides_nothing(
    triage, tmp_path, endpoint
):
    code, report = evaluate(
        tmp_path, *triage, "--judge", "openai", "--judge-model", "m", "--judge-url", endpoint, "--controls", "3"
    )
    assert code == 1, "a control refuses"
    assert report.pairwise.ties == 20
    assert report.judged.position_bias.inconsistent.mean == 1
    assert report.judged.position_bias.first.mean == 1
    assert "constant" in report.refusal, "who sees no difference anywhere cannot be believed"


@pytest.mark.parametrize("endpoint", [(10**6, '{"reason": "both are fine", "winner": "tie"}')], indirect=True)
def test_a_language_model_judges_a_trained_adapter_on_own_prompts_and_not_its_greedy_answers(
    small_run, tmp_path, endpoint
):
    work, _, _ = small_run
    prompts = write_rows(tmp_path / "questions.jsonl", QUESTIONS[:4])
    arms = ["base=base", f"dpo={work / 'dpo' / 'adapter'}"]
    judge = ("--judge", "openai", "--judge-model", "m", "--judge-url", endpoint, "--controls", "0")
    _, report = evaluate(tmp_path, arms, prompts, *judge, "--max-new-tokens", "12", "--criteria", "helpful")
    assert report.pairwise.ties == 4
    assert report.greedy.heuristics["words"].difference.n == 4
    assert report.greedy.pairwise is None, "what costs money is asked about the sampled answers alone"
    assert len(endpoint.asked) <= 2 * 4


def test_the_last_arm_is_sampled_twice_for_the_control_that_compares_it_with_itself(small_run, incidents, tmp_path):
    work, _, _ = small_run
    write_records(tmp_path / "prompts.jsonl", incidents[:4])
    arms = [f"{arm}={work / arm / 'adapter'}" for arm in ("sft", "dpo")]
    code, report = evaluate(tmp_path, arms, str(tmp_path / "prompts.jsonl"), "--judge", "rubric", "--controls", "3")
    assert code == 0
    (resample,) = (control for control in report.controls if control.name == "resample")
    assert "two samples of sft" in resample.expected
    assert sum(int(n) for n in re.findall(r"(\d+) (?:wins|ties|losses)", resample.found)) == 3
    assert not resample.found.startswith("0 wins, 3 ties, 0 losses"), "the second sample is the first one again"


def test_two_samples_a_prompt_are_compared_as_best_of_two(incidents, tmp_path):
    prompts = incidents[:20]
    write_records(tmp_path / "prompts.jsonl", prompts)
    for arm, number in (("poor", 0), ("rich", 1)):  # two arms and two samples: seeds 0 and 2, and 1 and 3
        rows = [
            Response(prompt_id=p.id, text=Incident.from_facts(p.facts).answer[: n * 40], arm=arm, seed=2 * i + number)
            for i, n in enumerate((0, 9) if arm == "rich" else (0, 1))
            for p in prompts
        ]
        write_records(tmp_path / f"{arm}.jsonl", rows)
    arms = [f"{arm}={tmp_path / f'{arm}.jsonl'}" for arm in ("poor", "rich")]
    code, report = evaluate(tmp_path, arms, str(tmp_path / "prompts.jsonl"), "--judge", "none", "--samples", "2")
    assert code == 1, "a control refuses"
    # best of one: rich's whole answer beats both of poor's; its empty one ties with empty and loses to the short one
    assert report.win_rate_at_k[1].mean == pytest.approx((1 + 1 + 0.5 + 0) / 4)
    assert report.win_rate_at_k[2].mean == 1
