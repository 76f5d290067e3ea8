"""Arms of every kind: adapters, models, files of answers, and an endpoint with every known kind of failure."""

import itertools
import json
import re
import shutil
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dpo_kit import pipeline
from dpo_kit.errors import DpoKitError
from dpo_kit.evaluation.arms import Base, FileArm, answer_all, parse_arm
from dpo_kit.evaluation.endpoint import EndpointArm
from dpo_kit.files import hashes
from dpo_kit.jsonl import write_records
from dpo_kit.models import generation
from dpo_kit.models.generation import Answer, Missing, Sampling, generate
from dpo_kit.models.loading import load_arms
from dpo_kit.models.store import Store
from dpo_kit.records import Message, Prompt, Response
from dpo_kit.workspace import Workspace

CANARY = "sk-canary-0123456789"
GREEDY = Sampling(0.0, 0, max_new_tokens=16, batch_size=8)
WARM = Sampling(1.0, 0, max_new_tokens=16, batch_size=8)


def ask(*ids):
    return [Prompt(id=i, messages=(Message(role="user", content=f"question {i}"),)) for i in ids]


def completion(text, reason="stop"):
    return {"choices": [{"finish_reason": reason, "message": {"role": "assistant", "content": text}}]}


class Server(ThreadingHTTPServer):
    """A chat-completions endpoint. `reply` maps a question and how often it was asked to (status, headers, body)."""

    def __init__(self, reply):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.asked, self.bodies, self.keys = reply, Counter(), [], set()
        self.lock, self.closing = threading.Lock(), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][-1]["content"].removeprefix("question ")
        with server.lock:
            server.asked[question] += 1
            server.bodies.append(body)
            server.keys.add(self.headers["Authorization"])
            times = server.asked[question]
        status, headers, reply = server.reply(question, times)
        if status == "slow":
            server.closing.wait(30)
            return
        content = reply.encode() if isinstance(reply, str) else json.dumps(reply).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(content), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def serve(monkeypatch):
    """Starts servers on loopback, with the canary as the reader's key."""
    monkeypatch.setenv("DPO_KIT_ENDPOINT_KEY", CANARY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    servers = []

    def start(reply):
        servers.append(Server(reply))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.closing.set()
        server.shutdown()
        server.server_close()


def misbehaving(question, times):
    """What each question meets, the first time and after."""
    always = {
        "malformed": (200, {}, '{"choices": [{"mess'),
        "html": (200, {"Content-Type": "text/html"}, "<html>proxy login</html>"),
        "empty list": (200, {}, {"choices": []}),
        "not an object": (200, {}, [1, 2]),
        "deep": (200, {}, "[" * 100_000),
        "refused": (200, {}, completion(None)),
        "filtered": (200, {}, completion("half an ans", "content_filter")),
        "cut off": (200, {}, completion("half an ans", "length")),
        "empty": (200, {}, completion("")),
        "surrogate": (200, {}, '{"choices": [{"finish_reason": "stop", "message": {"content": "a\\ud800b"}}]}'),
        "megabyte": (200, {}, completion("x" * 1_000_000)),
        "echo": (200, {}, completion(f"your key is {CANARY}")),
        "forbidden": (401, {}, {"error": {"message": f"Incorrect API key provided: {CANARY}"}}),
        "down": (503, {"Retry-After": "0.001"}, {}),
        "patience": (429, {"Retry-After": "3600"}, {}),
    }
    once = {
        "busy": (429, {"Retry-After": "0.01"}, {}),
        "hiccup": (500, {"Retry-After": "0.001"}, {}),
        "slow": ("slow", {}, {}),
    }
    if times == 1 and question in once:
        return once[question]
    return always.get(question, (200, {}, completion(f"answer to {question}")))


def test_an_endpoint_that_misbehaves_leaves_answers_missing_with_a_reason_and_invents_none(serve, tmp_path):
    server, store = serve(misbehaving), Store(tmp_path / "answers.sqlite", Answer)
    good = {
        "plain": ("answer to plain", True, 1),
        "cut off": ("half an ans", False, 1),
        "empty": ("", True, 1),
        "surrogate": ("a\ud800b", True, 1),
        "megabyte": ("x" * 1_000_000, True, 1),
        "busy": ("answer to busy", True, 2),
        "hiccup": ("answer to hiccup", True, 2),
        "slow": ("answer to slow", True, 2),
    }
    netloc = server.url.split("/")[2]
    bad = {
        "malformed": ("malformed reply of the server", 1),
        "html": ("malformed reply of the server", 1),
        "empty list": ("malformed reply of the server", 1),
        "not an object": ("malformed reply of the server", 1),
        "deep": ("malformed reply of the server", 1),
        "refused": ("the reply holds no whole answer; it ended as 'other'", 1),
        "filtered": ("the reply holds no whole answer; it ended as 'refused'", 1),
        "echo": ("the reply repeats the API key", 1),
        "forbidden": (f"arm remote at {netloc}: HTTP 401: the key is missing or wrong: set DPO_KIT_ENDPOINT_KEY", 1),
        "down": ("HTTP 503, after 3 of 3 attempts", 3),  # not for ever
        "patience": ("HTTP 429, after 1 of 3 attempts", 1),  # an hour is longer than any retry should wait
    }
    prompts = ask(*good, *bad)
    arm = EndpointArm("remote", server.url, "m", timeout=2, attempts=3, workers=4, give_up_after=99)
    answers = arm.answer(prompts, WARM, store)
    given = {a.prompt_id: (a.text, a.stopped) for a in answers if isinstance(a, Response)}
    assert given == {question: (text, stopped) for question, (text, stopped, _) in good.items()}
    assert [a for a in answers if isinstance(a, Missing)] == [Missing(q, reason) for q, (reason, _) in bad.items()]
    assert server.asked == {q: expected[-1] for q, expected in {**good, **bad}.items()}

    # the same again asks only for what is missing, and the key, which was sent, is written nowhere
    server.asked.clear()
    assert arm.answer(prompts, WARM, Store(store.path, Answer)) == answers
    assert set(server.asked) == set(bad)
    assert server.keys == {f"Bearer {CANARY}"}
    write_records(tmp_path / "responses.jsonl", [a for a in answers if isinstance(a, Response)])
    (tmp_path / "missing.txt").write_text(repr(answers) + repr(vars(arm)))
    assert not any(CANARY.encode() in path.read_bytes() for path in tmp_path.iterdir())


def test_the_key_of_openai_goes_to_no_other_server(serve, monkeypatch):
    server = serve(misbehaving)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai-0123456789")
    monkeypatch.delenv("DPO_KIT_ENDPOINT_KEY")
    EndpointArm("remote", server.url, "m").answer(ask("p"), WARM)
    assert server.keys == {None}


def test_each_request_says_what_was_asked_for_with_a_seed_of_the_prompt(serve):
    server = serve(misbehaving)
    for how in (WARM, GREEDY):
        EndpointArm("remote", server.url, "m", workers=1).answer(ask("p", "q"), how)
    keys = ("model", "temperature", "max_tokens")
    assert [[body[key] for key in keys] for body in server.bodies] == [["m", t, 16] for t in (1.0, 1.0, 0.0, 0.0)]
    seeds = [body["seed"] for body in server.bodies]
    assert seeds[:2] == seeds[2:]
    assert seeds[0] != seeds[1]


def test_a_stored_answer_is_that_of_one_model_server_and_way_of_sampling(serve, tmp_path):
    here, elsewhere = serve(misbehaving), serve(misbehaving)
    store, others = Store(tmp_path / "answers.sqlite", Answer), [Sampling(1.0, 1, 16, 8), Sampling(1.0, 0, 9, 8)]
    asked = [(here.url, "m", WARM), (here.url, "another", WARM), (elsewhere.url, "m", WARM), (here.url, "m", GREEDY)]
    asked += [(here.url, "m", other) for other in others]
    for _ in range(2):
        for url, model, sampling in asked:
            EndpointArm("remote", url, model).answer(ask("plain"), sampling, store)
    assert (len(here.bodies), len(elsewhere.bodies)) == (5, 1), "each was asked once, and found the second time"


def test_an_endpoint_that_dies_half_way_is_left_alone_and_what_is_missing_is_said(serve, tmp_path):
    def dies(question, times):
        return (200, {}, completion("fine")) if int(question) < 10 else (502, {}, {})

    server, prompts = serve(dies), ask(*map(str, range(40)))
    arm = EndpointArm("remote", server.url, "m", attempts=1, workers=1, give_up_after=5)
    write_records(tmp_path / "ready.jsonl", [Response(prompt_id=p.id, text="ready") for p in prompts])
    store = Store(tmp_path / "answers.sqlite", Answer)
    result = answer_all([arm, FileArm("ready", tmp_path / "ready.jsonl")], prompts, [WARM], store)
    assert [r.prompt_id for r in result.responses if r.arm == "remote"] == [str(i) for i in range(10)]
    assert len([r for r in result.responses if r.arm == "ready"]) == 40
    assert set(result.missing) == {"remote"}
    reasons = Counter(reason for _, reason in result.missing["remote"])
    assert set(reasons) == {
        "temperature 1: HTTP 502, after 1 of 1 attempts",
        "temperature 1: not asked: 5 requests in a row had failed",
    }
    assert reasons["temperature 1: HTTP 502, after 1 of 1 attempts"] == server.asked.total() - 10 == 5
    told = "25 times temperature 1: not asked: 5 requests in a row had failed"
    assert result.reasons() == {"remote": f"{told}; 5 times temperature 1: HTTP 502, after 1 of 1 attempts"}
    assert str(result.count_stops("remote")) == "10 answers: 100.0% ended by themselves, 0.0% were cut off"
    assert str(result.count_stops("ready")) == "40 answers; how they ended is unknown"


def test_no_server_at_all_is_a_reason_too(serve):
    server = serve(misbehaving)
    server.shutdown()
    server.server_close()
    (answer,) = EndpointArm("remote", server.url, "m", attempts=1).answer(ask("p"), WARM)
    assert answer.reason.startswith(f"arm remote: no server can be reached at {server.url}: the connection failed")


def test_three_arms_on_one_set_of_weights_draw_with_seeds_of_their_own(small_run, small_profile, incidents):
    work, profile, _ = small_run
    folders = {name: work / name / "adapter" for name in ("sft", "dpo")}
    base = Base(profile)
    arms = [base.arm("base"), *(base.arm(name, folder) for name, folder in folders.items())]
    how = Sampling(1.0, 4, max_new_tokens=16, batch_size=3)
    result = answer_all(arms, incidents[:5], [how, GREEDY])
    assert result.missing == {}
    loaded, expected = load_arms(profile, folders), []
    for sampling in (how, GREEDY):
        for number, name in enumerate(("base", "sft", "dpo")):
            own = Sampling(sampling.temperature, 3 * sampling.seed + number, 16, sampling.batch_size)
            expected += generate(loaded, name, incidents[:5], own)
    assert result.responses == expected


class Noted:
    """An arm that notes with what it is asked."""

    def __init__(self, name):
        self.name, self.asked = name, []

    def answer(self, prompts, sampling, store=None):
        self.asked.append((len(prompts), sampling.temperature, sampling.seed))
        made = {"arm": self.name, "temperature": sampling.temperature, "seed": sampling.seed}
        return [Response(prompt_id=p.id, text=f"drawn with {sampling.seed}", **made) for p in prompts]

    def release(self):
        self.asked.append("released")


def test_an_arm_answers_again_with_a_seed_that_none_of_its_runs_has():
    own, again = set(), set()
    for seed in range(5):
        arms = [Noted(name) for name in ("base", "sft", "dpo")]
        samplings = [Sampling(1.0, seed, 16, 8), Sampling(0.0, seed, 16, 8)]
        answers = answer_all(arms, ask("p", "q"), samplings, again="sft", again_prompts=1)
        (first, greedy, second, last) = arms[1].asked
        assert (first[:2], greedy[:2], second[:2], last) == ((2, 1.0), (2, 0.0), (1, 1.0), "released")
        assert len(arms[0].asked) == len(arms[2].asked) == 3
        assert [r.seed for r in answers.resample] == [second[2]]
        assert not [r for r in answers.responses if r.seed == second[2] and r.arm == "sft"]
        own.add(first[2])
        again.add(second[2])
    assert not own & again


def test_a_second_sample_that_was_drawn_anyway_is_the_resample_and_ready_answers_have_none(tmp_path):
    twice = [Sampling(1.0, seed, 16, 8) for seed in (0, 1)]
    arms = [Noted("base"), Noted("sft")]
    resample = answer_all(arms, ask("p"), twice, again="sft").resample
    assert [r.seed for r in resample] == [2 * 1 + 1]
    assert len(arms[1].asked) == 3, "nothing was drawn for it"
    write_records(tmp_path / "a.jsonl", [Response(prompt_id="p", text="x")])
    ready = [FileArm("base", tmp_path / "a.jsonl"), FileArm("sft", tmp_path / "a.jsonl")]
    assert answer_all(ready, ask("p"), [WARM], again="sft").resample == []
    assert answer_all([Noted("base"), Noted("sft")], ask("p"), [GREEDY], again="sft").resample == []


def test_two_arms_of_one_name_are_refused(tmp_path):
    write_records(tmp_path / "a.jsonl", [])
    arm = FileArm("same", tmp_path / "a.jsonl")
    with pytest.raises(DpoKitError, match="same, same: two have the same name"):
        answer_all([arm, arm], ask("p"), [WARM])


def test_ready_answers_are_found_by_arm_temperature_and_seed(tmp_path):
    path = tmp_path / "answers.jsonl"
    rows = [
        Response(prompt_id="p", text="mine, greedy", arm="mine", temperature=0.0, seed=0, stopped=True),
        Response(prompt_id="p", text="mine, warm", arm="mine", temperature=1.0, seed=0, stopped=False),
        Response(prompt_id="p", text="mine, warm, another draw", arm="mine", temperature=1.0, seed=7),
        Response(prompt_id="p", text="theirs", arm="theirs", temperature=1.0, seed=0),
        Response(prompt_id="q", text="theirs too", arm="theirs"),
    ]
    write_records(path, rows)
    mine = FileArm("mine", path)
    warm, missing = mine.answer(ask("p", "q"), WARM)
    assert (warm.text, warm.stopped, warm.arm) == ("mine, warm", False, "mine")
    assert missing == Missing("q", "no answer in answers.jsonl")
    assert mine.answer(ask("p"), GREEDY)[0].text == "mine, greedy"
    write_records(path, [Response(prompt_id="p", text="x"), Response(prompt_id="p", text="y")])
    with pytest.raises(DpoKitError, match="2 answers to prompt 'p' at temperature 0"):
        FileArm("any", path).answer(ask("p"), GREEDY)


def test_a_model_of_its_own_answers_as_the_base_does_and_leaves_the_memory(small_run, incidents, tmp_path):
    _, profile, _ = small_run
    folder = shutil.copytree(profile.model_path, tmp_path / "elsewhere")
    arm = parse_arm(f"other={folder}", Base(profile))
    base = Base(profile).arm("base").answer(incidents[:2], GREEDY)
    assert arm.answer(incidents[:2], GREEDY) == [r.model_copy(update={"arm": "other"}) for r in base]
    arm.release()
    assert arm.base._arms is None
    for name in ("chat_template.jinja", "manifest.json"):
        (folder / name).unlink()
    with pytest.raises(DpoKitError, match="no chat template, as base models have none; give one with --chat-template"):
        arm.answer(incidents[:1], GREEDY)


def test_the_command_line_names_every_kind_of_arm(small_run, tmp_path):
    work, profile, _ = small_run
    base = Base(profile)
    write_records(tmp_path / "ready.jsonl", [Response(prompt_id="p", text="x")])
    alone, tuned = parse_arm("base=base", base), parse_arm(f"tuned={work / 'dpo' / 'adapter'}", base)
    assert (alone.base, alone.folder) == (base, None)
    assert (tuned.base, tuned.folder) == (base, work / "dpo" / "adapter")
    hub = parse_arm("hub=Qwen/Qwen3-0.6B", base)
    assert (hub.base.profile.model.path, hub.base.shared) == ("Qwen/Qwen3-0.6B", False)
    remote = parse_arm("gpt=https://host.example/v1#gpt-x", base)
    assert (remote.base_url, remote.model) == ("https://host.example/v1", "gpt-x")
    assert parse_arm(f"file={tmp_path / 'ready.jsonl'}", base).answer(ask("p"), WARM)[0].text == "x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base", "write name=spec"),
        ("=base", "write name=spec"),
        ("a.b=base", "the name in letters"),
        ("x=https://host.example/v1", "which model of the endpoint?"),
        ("x=https://me:secret@host.example/v1#m", "not a plain http(s) address; a key belongs in the environment"),
        ("x=./no/such/folder", "no adapter, model, endpoint or .jsonl is there"),
        ("x=/tmp", "no adapter, model, endpoint or .jsonl is there"),
        ("x=nowhere.jsonl", "nowhere.jsonl: no such file"),
    ],
)
def test_what_names_no_arm_is_one_clear_error(text, message, small_profile):
    with pytest.raises(DpoKitError, match=re.escape(message)) as raised:
        parse_arm(text, Base(small_profile))
    assert "secret" not in str(raised.value)


def test_an_adapter_called_base_is_refused(small_run):
    work, profile, _ = small_run
    with pytest.raises(DpoKitError, match="cannot be called 'base'"):
        parse_arm(f"base={work / 'dpo' / 'adapter'}", Base(profile))


def test_a_finished_stage_leaves_no_stored_answers(small_run):
    assert (small_run[0] / ".answers").is_dir(), "the answers were stored while the stages ran"
    assert not list((small_run[0] / ".answers").iterdir())


def test_fresh_forgets_the_answers_of_an_unfinished_stage(tmp_path):
    work = Workspace(tmp_path, "tiny")
    Store(work.answers("pairs"), Answer).add(["k"], [Answer("left by a killed run", True)])
    work.remove_stages()
    assert Store(work.answers("pairs"), Answer).find(["k"]) == [None]


def test_stages_interrupted_again_and_again_ask_nothing_twice_and_end_with_the_same_report(
    small_run, tmp_path, monkeypatch
):
    work, profile, report = small_run
    again = shutil.copytree(work, tmp_path / "again")
    for stage in ("pairs", "eval"):
        shutil.rmtree(again / stage)
    answer, keep, calls, stored = generation._generate_batch, Store.add, itertools.count(1), []

    def every_third_fails(*batch):
        if next(calls) % 3 == 0:
            raise KeyboardInterrupt
        return answer(*batch)

    def noted(self, keys, answers):
        stored.append(keys)
        return keep(self, keys, answers)

    monkeypatch.setattr(generation, "_generate_batch", every_third_fails)
    monkeypatch.setattr(Store, "add", noted)
    interruptions = 0
    while True:
        try:
            result = pipeline.run(profile, again, log=lambda line: None)
            break
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions == (len(stored) - 1) // 2 > 3
    assert max(Counter(itertools.chain(*stored)).values()) == 1, "an answer was made twice"
    for stage in ("pairs", "eval"):
        assert hashes(again / stage, skip=("manifest.json",)) == hashes(work / stage, skip=("manifest.json",))
    assert result.metrics == report.metrics
    assert result.pairwise == report.pairwise
