"""Language-model judges against a real server on loopback that misbehaves: every fault has one written outcome."""

import json
import logging
import shutil
import threading
import traceback
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from dpo_kit.errors import DpoKitError
from dpo_kit.models.servers import OVERHEAD, Budget
from dpo_kit.preferences.judges import both_orders, by_score, judge_all
from dpo_kit.preferences.judges.llm import (
    TOKEN,
    JudgeClient,
    _comparison,
    estimate_cost,
    llm_judge,
    llm_score,
    make_judge,
)
from dpo_kit.profiles import JudgeSettings, load_profile
from dpo_kit.records import Message, Prompt
from dpo_kit.triage.judges import judge_in_world
from tests.canary import CANARY, assert_no_canary, plant
from tests.preferences.judges.judge_server import (
    breaks_off,
    completion,
    drops,
    fails,
    hangs,
    judge_server,
    raw,
    says,
    sends,
    unstructured_only,
    verdict,
)

KINDS = {"openai": "/v1", "anthropic": ""}
PROMPT = Prompt(id="p", messages=(Message(role="system", content="Be brief."), Message(role="user", content="2 + 2?")))


@pytest.fixture(autouse=True)
def planted(monkeypatch, tmp_path):
    """Every test here runs with the canary as its key, and none may leave it in a file."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for variable in ("OPENAI_BASE_URL", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    plant(monkeypatch)
    yield
    assert_no_canary(tmp_path)


@pytest.fixture
def server():
    with judge_server() as server:
        yield server


@pytest.fixture(params=KINDS)
def client(request, server, tmp_path):
    """A client of each SDK; its waits are noted, not waited."""
    return make_client(request.param, server, tmp_path)


def make_client(kind, server, tmp_path, **settings):
    base = {"kind": kind, "model": "m", "base_url": server.url + KINDS[kind], "timeout_seconds": 5, "attempts": 3}
    waits = []
    client = JudgeClient(JudgeSettings(**{**base, **settings}), tmp_path / "cache.sqlite", waits.append)
    client.waits = waits
    return client


def cached(client):
    """The keys of the replies that are stored."""
    with client.store._transaction() as db:
        return [key for (key,) in db.execute("SELECT key FROM kept")]


def test_a_verdict_comes_back_with_its_reason_its_judge_and_its_time(client, server):
    server.script = [says(verdict("A", "four is right")), says(verdict("B")), says(verdict("tie"))]
    judge = llm_judge(client)
    first = judge(PROMPT, "4", "5")
    assert (first.winner, first.reason, first.order) == ("a", "four is right", "ab")
    assert first.judge == f"{client.settings.kind}: m"
    assert datetime.fromisoformat(first.at) <= datetime.now(UTC)
    assert [judge(PROMPT, "4", text).winner for text in ("6", "7")] == ["b", "tie"]
    sent = json.dumps(server.requests[0]["body"])
    assert sent.index("| Be brief.") < sent.index("| 2 + 2?") < sent.index("BEGIN ANSWER A")
    assert sent.index("BEGIN ANSWER A") < sent.index("| 4") < sent.index("BEGIN ANSWER B") < sent.index("| 5")


def test_each_request_asks_for_the_schema_limits_the_reply_and_has_a_token_of_its_own(client, server):
    for text in ("5", "6"):
        llm_judge(client)(PROMPT, "4", text)
    bodies = [request["body"] for request in server.requests]
    schemas = {
        "openai": lambda body: body["response_format"]["json_schema"]["schema"],
        "anthropic": lambda body: body["output_config"]["format"]["schema"],
    }
    for body in bodies:
        assert schemas[client.settings.kind](body)["properties"]["winner"]["enum"] == ["A", "B", "tie"]
        assert body["max_tokens"] == client.settings.max_reply_tokens
        assert "temperature" not in body
    tokens = [body["messages"][-1]["content"].split("\n")[0].split()[-1] for body in bodies]
    assert all(len(token) == 32 for token in tokens)
    assert tokens[0] != tokens[1]


def test_asked_in_both_orders_a_judge_that_loves_the_first_answer_decides_nothing(client, server):
    found = both_orders(llm_judge(client))(PROMPT, "4", "5")
    assert (found.winner, found.order, found.in_orders) == ("tie", "both", ("a", "b"))
    assert len(server.requests) == 2


# Each fault of one reply, and the outcome: never a winner, always the reason.
REPLIES = {
    "refusal": (says("", "refused"), "refused"),
    "content filter": (says(verdict("A"), "filtered"), "refused"),
    "cut off, though what came reads well": (says(verdict("A"), "cut"), "cut off"),
    "prose": (says("I prefer answer A."), "malformed"),
    "empty": (says(""), "malformed"),
    "another winner": (says(verdict("C")), "malformed"),
    "lower case": (says(verdict("a")), "malformed"),
    "a part of the object": (says('{"reason": "x"}'), "malformed"),
    "half an object": (says(verdict("A")[:-3]), "malformed"),
    "two objects": (says(verdict("A") + verdict("B")), "malformed"),
    "a list": (says(f"[{verdict('A')}]"), "malformed"),
    "an object of another API": (raw(b'{"hello": "world"}'), "malformed"),
    "no choices": (raw(b'{"choices": [], "content": [], "usage": null}'), "malformed"),
    "nulls": (raw(b'{"choices": null, "content": null, "usage": null}'), "malformed"),
    "a page of HTML": (raw(b"<html>Gateway</html>", "text/html"), "malformed"),
    "not JSON": (raw(b"{"), "malformed"),
    "no body": (raw(b""), "malformed"),
    "not UTF-8": (raw(b'{"choices": "\xff\xfe"}'), "malformed"),
    "nested 100,000 deep": (raw(b"[" * 100_000), "malformed"),
    "a request it will not take": (fails(400, "context too long"), "HTTP 400: "),
}


@pytest.mark.parametrize("fault", REPLIES)
def test_a_reply_that_is_no_verdict_leaves_the_pair_unjudged_and_is_asked_again_next_time(client, server, fault):
    behaviour, reason = REPLIES[fault]
    server.otherwise = behaviour
    found = llm_judge(client)(PROMPT, "4", "5")
    assert found.winner == "unjudged"
    assert reason in found.reason
    assert client.waits == []
    assert cached(client) == []
    server.otherwise = says(verdict("B"))
    assert llm_judge(client)(PROMPT, "4", "5").winner == "b"


@pytest.mark.parametrize("fault", [fails(429), fails(500), fails(503), fails(529), fails(408), drops, breaks_off])
def test_a_passing_fault_is_waited_out(client, server, fault):
    server.script = [fault, fault]
    assert llm_judge(client)(PROMPT, "4", "5").winner == "a"
    assert client.waits == [1, 2]
    assert client.tally == Counter(requests=3, retries=2)


def test_a_server_that_does_not_answer_in_time_is_asked_again_and_then_given_up(server, tmp_path, request):
    for kind in KINDS:
        client = make_client(kind, server, tmp_path / kind, timeout_seconds=0.5)
        server.script = [hangs]
        assert llm_judge(client)(PROMPT, "4", "5").winner == "a"
        server.script = [hangs] * 3
        found = llm_judge(client)(PROMPT, "4", "6")
        assert (found.winner, client.waits) == ("unjudged", [1, 1, 2])
        assert "no reply within 0.5 s, after 3 of 3 attempts" in found.reason


def test_attempts_are_bounded_and_the_sdk_adds_none_of_its_own(client, server):
    server.otherwise = fails(500)
    found = llm_judge(client)(PROMPT, "4", "5")
    assert (found.winner, len(server.requests)) == ("unjudged", 3)
    assert "HTTP 500, after 3 of 3 attempts" in found.reason


def test_retry_after_is_honoured_as_seconds_and_as_a_date_and_a_long_one_is_not_waited_for(client, server):
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    server.script = [fails(429, Retry_After="7.5"), fails(503, Retry_After=in_a_minute)]
    assert llm_judge(client)(PROMPT, "4", "5").winner == "a"
    assert client.waits[0] == 7.5
    assert 50 < client.waits[1] <= 60
    server.script = [fails(429, Retry_After="86400")]
    found = llm_judge(client)(PROMPT, "4", "6")
    assert (found.winner, len(client.waits)) == ("unjudged", 2)
    server.script = [fails(429, Retry_After="soon")]
    assert llm_judge(client)(PROMPT, "4", "7").winner == "a"
    assert client.waits[2] == 1


@pytest.mark.parametrize(
    ("status", "advice"),
    [(401, "set DPO_KIT_JUDGE_KEY"), (402, "credit"), (403, "may not"), (404, "check the model 'm'")],
)
def test_a_fault_of_the_settings_stops_everything_at_once(client, server, status, advice):
    server.otherwise = fails(status, f"your key {CANARY} is wrong")
    prompts = [PROMPT.model_copy(update={"id": str(i)}) for i in range(50)]
    texts = [str(i) for i in range(50)]
    with pytest.raises(DpoKitError, match=f"HTTP {status}.*{advice}"):
        judge_all(llm_judge(client), prompts, texts, ["5"] * 50, workers=2)
    assert len(server.requests) <= 2, "no question is begun after the first that met the fault"


def test_a_server_that_is_not_there_is_one_error_but_one_that_goes_away_leaves_the_rest_unjudged(server, tmp_path):
    for kind in KINDS:
        nobody = make_client(kind, server, tmp_path, base_url="http://127.0.0.1:9")
        with pytest.raises(DpoKitError, match=r"judge: no server can be reached at http://127\.0\.0\.1:9"):
            llm_judge(nobody)(PROMPT, "4", "5")
        assert nobody.budget.spent == 0
        with judge_server() as passing:
            client = make_client(kind, passing, tmp_path / kind)
            assert llm_judge(client)(PROMPT, "4", "5").winner == "a"
        assert llm_judge(client)(PROMPT, "4", "6").winner == "unjudged"


def test_a_server_without_structured_output_is_asked_in_words_and_not_refused_again(client, server):
    server.otherwise = unstructured_only
    assert [llm_judge(client)(PROMPT, "4", text).winner for text in "567"] == ["b"] * 3
    assert len(server.requests) == 4, "one refusal, then three plain requests"


def test_a_reasoning_model_that_thinks_aloud_is_read_after_its_thoughts(client, server):
    server.otherwise = says(f"<think>{verdict('A')} or not?</think>\n\n{verdict('B')}")
    assert llm_judge(client)(PROMPT, "4", "5").winner == "b"


def test_a_temperature_is_sent_where_it_is_set(server, tmp_path):
    for kind in KINDS:
        llm_judge(make_client(kind, server, tmp_path, temperature=0.0))(PROMPT, "4", "5")
        assert server.requests[-1]["body"]["temperature"] == 0.0


# --- the cache


def test_the_same_question_is_paid_once_also_by_the_next_run_and_when_asked_twice_at_once(client, server, tmp_path):
    prompts, texts = [PROMPT] * 16, ["4"] * 16
    first = judge_all(llm_judge(client), prompts, texts, ["5"] * 16, workers=8)
    again = make_client(client.settings.kind, server, tmp_path)
    assert judge_all(llm_judge(again), prompts, texts, ["5"] * 16) == first
    assert len(server.requests) == 1
    assert (client.tally, again.tally) == (Counter(requests=1, cached=15), Counter(cached=16))
    assert again.budget.spent == 0


MATTERS = {
    "model": {"model": "other"},
    "temperature": {"temperature": 0.5},
    "reply limit": {"max_reply_tokens": 99},
    "criteria": {"criteria": "Prefer rhyme."},
}
INDIFFERENT = {"price": {"input_price": 3.0}, "concurrency": {"concurrency": 9}, "attempts": {"attempts": 1}}


@pytest.mark.parametrize("change", MATTERS | INDIFFERENT)
def test_the_cache_misses_where_a_setting_matters_and_hits_where_it_does_not(client, server, tmp_path, change):
    llm_judge(client)(PROMPT, "4", "5")
    changed = make_client(client.settings.kind, server, tmp_path, **(MATTERS | INDIFFERENT)[change])
    llm_judge(changed)(PROMPT, "4", "5")
    assert len(server.requests) == (2 if change in MATTERS else 1)


def test_the_cache_misses_on_another_prompt_answer_order_server_api_question_or_parser(server, tmp_path, monkeypatch):
    client = make_client("openai", server, tmp_path)
    other = PROMPT.model_copy(update={"messages": (Message(role="user", content="2 + 3?"),)})
    moved = PROMPT.model_copy(update={"messages": PROMPT.messages[::-1]})
    asked = [(PROMPT, "4", "5"), (PROMPT, "5", "4"), (PROMPT, "4", "6"), (PROMPT, "6", "5"), (other, "4", "5")]
    for row in [*asked, (moved, "4", "5")]:
        llm_judge(client)(*row)
    with judge_server() as elsewhere:
        llm_judge(make_client("openai", elsewhere, tmp_path))(PROMPT, "4", "5")
    llm_judge(make_client("anthropic", server, tmp_path))(PROMPT, "4", "5")
    monkeypatch.setattr("dpo_kit.preferences.judges.llm.PARSER_VERSION", -1)
    llm_judge(client)(PROMPT, "4", "5")
    assert len(cached(client)) == 9
    renamed = PROMPT.model_copy(update={"id": "another name for the same question"})
    llm_judge(client)(renamed, "4", "5")
    assert len(cached(client)) == 9


def test_replies_that_an_earlier_version_kept_in_a_folder_are_not_paid_again(server, tmp_path):
    client = make_client("openai", server, tmp_path)
    first = llm_judge(client)(PROMPT, "4", "5")
    (key,) = cached(client)
    before = tmp_path / "before" / key[:2] / f"{key}.json"
    before.parent.mkdir(parents=True)
    before.write_text(json.dumps({"text": verdict("A"), "at": first.at}))
    before.with_name("00.json").write_text('{"text": 5, "at": ')
    again = JudgeClient(client.settings, tmp_path / "before.sqlite")
    assert llm_judge(again)(PROMPT, "4", "5") == first
    assert len(server.requests) == 1


# --- cost


PRICES = {"input_price": 1.0, "output_price": 10.0, "max_reply_tokens": 100}


def most(settings, *texts):
    size = _comparison(settings, PROMPT, *texts, TOKEN).size
    return ((size + OVERHEAD) * settings.input_price + settings.max_reply_tokens * settings.output_price) / 1e6


def test_spending_follows_the_tokens_the_server_bills(client, server, tmp_path):
    priced = make_client(client.settings.kind, server, tmp_path, **PRICES)
    llm_judge(priced)(PROMPT, "4", "5")
    assert priced.budget.spent == pytest.approx((200 * 1.0 + 50 * 10.0) / 1e6)
    server.script = [says(verdict("A"), "cut")]
    llm_judge(priced)(PROMPT, "4", "6")
    assert priced.budget.spent == pytest.approx(2 * 700 / 1e6), "a cut reply is billed too"
    server.script = [fails(429)]
    llm_judge(priced)(PROMPT, "4", "7")
    assert priced.budget.spent == pytest.approx(3 * 700 / 1e6), "a refused request is not"
    server.script = [drops]
    llm_judge(priced)(PROMPT, "4", "8")
    expected = 4 * 700 / 1e6 + most(priced.settings, "4", "8")
    assert priced.budget.spent == pytest.approx(expected), "one that was lost may be: the worst is assumed"
    server.script = [says(verdict("A"), usage=None)]
    llm_judge(priced)(PROMPT, "4", "9")
    assert priced.budget.spent == pytest.approx(expected + most(priced.settings, "4", "9")), "nor is silence free"


@pytest.mark.parametrize("workers", [1, 8])
def test_the_cap_is_hard_and_the_rest_is_unjudged(client, server, tmp_path, workers):
    # Each question costs 700 millionths and is held at about 4 times that: a cap of 20 questions' price asks at most
    # 20, also when 8 are in flight at once, and stops no earlier than the worst case of one question before the cap.
    cap = 20 * 700 / 1e6
    priced = make_client(client.settings.kind, server, tmp_path, max_dollars=cap, **PRICES)
    rows = [PROMPT] * 60, ["4"] * 60, [f"{i:02}" for i in range(60)]
    verdicts = judge_all(llm_judge(priced), *rows, workers=workers)
    judged = [v for v in verdicts if v.winner == "a"]
    assert len(judged) == len(server.requests)
    worst = most(priced.settings, "4", "00")
    assert cap - worst < priced.budget.spent <= cap
    assert all(v.winner == "unjudged" and v.reason.startswith("budget") for v in verdicts if v not in judged)
    assert judge_all(llm_judge(priced), *rows)[: len(judged)].count(judged[0]) >= 1, "what is cached costs nothing"


def test_a_budget_of_nothing_asks_nothing(client, server, tmp_path):
    priced = make_client(client.settings.kind, server, tmp_path, max_dollars=0.0, **PRICES)
    assert llm_judge(priced)(PROMPT, "4", "5").reason.startswith("budget")
    assert server.requests == []


def test_what_is_in_flight_counts_and_the_next_request_waits_for_what_it_gives_back():
    # 10 dollars: 8 are held, so 7 more do not fit. Settled at 2, they do; then 1 is left.
    waiting = threading.Event()

    class Noted(threading.Condition):
        def wait(self, timeout=None):
            waiting.set()
            return super().wait(timeout)

    budget, held = Budget(10.0), []
    budget._changed = Noted()
    assert budget.hold(8.0)
    second = threading.Thread(target=lambda: held.append(budget.hold(7.0)))
    second.start()
    assert waiting.wait(timeout=10), "7 dollars were given out beside 8 of 10"
    budget.settle(8.0, 2.0)
    second.join()
    assert held == [True]
    budget.settle(7.0, 7.0)
    assert (budget.spent, budget.hold(2.0), budget.hold(1.0)) == (9.0, False, True)


def test_the_estimate_counts_the_text_that_is_sent_and_what_is_spent_lies_below_its_upper_end(server, tmp_path):
    settings = JudgeSettings(kind="anthropic", model="m", **PRICES, max_answer_characters=500)
    prompts, a = [PROMPT] * 3, ["4" * 300, "4", "4"]
    estimate = estimate_cost(prompts, a, ["5", "6", "7" * 501], settings)
    # Two rows are short enough to be sent, each in both orders; the token stands for itself, so bytes are exact.
    client = make_client("anthropic", server, tmp_path, **PRICES, max_answer_characters=500)
    judge_all(both_orders(llm_judge(client)), prompts, a, ["5", "6", "7" * 501])
    assert estimate.questions == len(server.requests) == 4
    schema = json.dumps(server.requests[0]["body"]["output_config"]["format"]["schema"])
    texts = [r["body"]["system"] + r["body"]["messages"][0]["content"] + schema for r in server.requests]
    sent = len("".join(texts).encode())
    assert estimate.input_tokens == round(sent / 3.5)
    assert estimate.dollars == pytest.approx((estimate.input_tokens * 1.0 + estimate.output_tokens * 10.0) / 1e6)
    assert client.budget.spent < estimate.at_most
    once = estimate_cost(prompts, a, ["5", "6", "7" * 501], settings.model_copy(update={"both_orders": False}))
    assert (once.questions, once.at_most) == (2, pytest.approx(estimate.at_most / 2))


def test_an_answer_too_long_to_be_sent_is_unjudged_for_nothing(client, server):
    found = llm_judge(client)(PROMPT, "4", "x" * 1_000_000)
    assert (found.winner, server.requests) == ("unjudged", [])
    assert "1000000 characters; at most 20000" in found.reason


# --- scores


def test_a_score_comes_with_its_reason_or_not_at_all(client, server):
    score = llm_score(client)
    server.script = [says(json.dumps({"reason": "nearly", "score": 4})), says(json.dumps({"reason": "", "score": 6}))]
    assert score(PROMPT, "4") == (4, "nearly")
    assert score(PROMPT, "4") == (4, "nearly")
    found, reason = score(PROMPT, "5")
    assert found is None
    assert reason.startswith("malformed")
    assert len(server.requests) == 2
    assert score(PROMPT, "x" * 20_001)[0] is None


# --- keys


def test_the_key_of_a_vendor_is_never_sent_to_another_server(client, server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-vendor-openai-000000000")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-vendor-anthropic-0000")
    monkeypatch.delenv("DPO_KIT_JUDGE_KEY")
    bare = JudgeClient(client.settings, client.store.path)
    llm_judge(client)(PROMPT, "4", "5")
    llm_judge(bare)(PROMPT, "4", "6")
    with_key, without = (json.dumps(request["headers"]) for request in server.requests)
    assert CANARY in with_key
    assert "sk-" not in without


def test_a_key_that_is_absent_or_no_key_is_one_clear_error(monkeypatch, tmp_path):
    hosted = {"model": "m", "input_price": 1.0, "output_price": 1.0}
    for kind, variable in (("openai", "OPENAI_API_KEY"), ("anthropic", "ANTHROPIC_API_KEY")):
        settings = JudgeSettings(kind=kind, **hosted)
        assert JudgeClient(settings, tmp_path / "cache.sqlite").server.url.startswith("https://api.")
        monkeypatch.setenv(variable, f"{CANARY}\nand more")
        with pytest.raises(DpoKitError, match=f"{variable} holds characters") as error:
            JudgeClient(settings, tmp_path / "cache.sqlite")
        assert CANARY not in str(error.value)
        monkeypatch.delenv(variable)
        with pytest.raises(DpoKitError, match=f"set the environment variable {variable}"):
            JudgeClient(settings, tmp_path / "cache.sqlite")


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"model": ""}, "judge.model is empty"),
        ({"base_url": "", "input_price": 0.0}, "without prices"),
        ({"base_url": "localhost:8000"}, "plain http"),
        ({"base_url": "http://localhost:99999/v1"}, "plain http"),
        ({"base_url": f"http://me:{CANARY}@host/v1"}, "environment"),
        ({"base_url": f"http://host/v1?key={CANARY}"}, "environment"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_asked(wrong, match, tmp_path):
    settings = JudgeSettings(**{"kind": "openai", "model": "m", "base_url": "http://localhost:1/v1", **wrong})
    with pytest.raises(DpoKitError, match=match) as error:
        JudgeClient(settings, tmp_path / "cache.sqlite")
    assert CANARY not in str(error.value)


def test_a_profile_takes_no_key():
    with pytest.raises(DpoKitError, match=r"unknown key judge\.api_key") as error:
        load_profile("tiny", judge={"api_key": CANARY})
    assert CANARY not in str(error.value)


def echoes(status):
    """A server that plays the request's headers back, the key among them."""

    def behave(server, request):
        said = json.dumps(request["headers"])
        body = completion(request["path"], json.dumps({"reason": said, "winner": "A"})) if status == 200 else None
        return sends(body or {"error": {"message": said}}, status)

    return behave


@pytest.mark.parametrize("behaviour", [echoes(200), echoes(400), echoes(401), echoes(500), drops, raw(b"{")])
def test_no_log_exception_verdict_or_cache_holds_the_key(client, server, tmp_path, caplog, behaviour):
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("openai", "anthropic", "http", "asyncio")):
            caplog.set_level(logging.DEBUG, logger=name)
    server.otherwise = behaviour
    shown, raised = "", None
    try:
        shown = llm_judge(client)(PROMPT, "4", "5").model_dump_json()
    except DpoKitError as error:
        shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
        raised = error
    assert not knows_the_key(raised)
    assert CANARY in json.dumps(server.requests[0]["headers"]), "the key was in use"
    assert CANARY not in shown + caplog.text + repr(client.__dict__) + repr(client.server.__dict__)
    (tmp_path / "log.txt").write_text(caplog.text + shown)  # the fixture looks for halves, too


def knows_the_key(error):
    """Whether an exception, or any it came from, carries the request: its headers hold the key."""
    while error is not None:
        if hasattr(error, "request") or hasattr(error, "response"):
            return True
        error = error.__cause__ or error.__context__
    return False


@pytest.mark.parametrize("held", [CANARY, CANARY[:17], f"x{CANARY[-17:]}"])
def test_the_search_for_the_canary_finds_it_whole_or_half_in_a_file_and_in_a_name(tmp_path, held):
    inside, named = tmp_path / "inside", tmp_path / "named"
    (inside / "deep").mkdir(parents=True)
    (inside / "deep" / "file").write_bytes(b"\xff" + held.encode() + b"\x00")
    named.mkdir()
    (named / f"{held}.json").touch()
    for folder in (inside, named):
        with pytest.raises(AssertionError, match="holds the key"):
            assert_no_canary(folder)
        shutil.rmtree(folder)


# --- the profile's judge


def test_a_profile_names_its_judge(server, tmp_path, monkeypatch):
    truth = by_score(lambda prompt, text: len(text), "length")
    cache = tmp_path / "cache.sqlite"
    pick = {"base_url": f"{server.url}/v1", "model": "m"}
    assert judge_in_world(load_profile("tiny").judge, truth, cache) is truth
    biased = load_profile("tiny", judge={"kind": "simulated", "position_bias": 1.0}).judge
    assert judge_in_world(biased, truth, cache)(PROMPT, "4", "44").in_orders == ("a", "b")
    with pytest.raises(DpoKitError, match="'simulated' needs the facts of incidents"):
        make_judge(biased, cache)
    model = judge_in_world(load_profile("tiny", judge={"kind": "openai", **pick}).judge, truth, cache)
    assert model(PROMPT, "4", "5").in_orders == ("a", "b")
    single = {"kind": "openai", "both_orders": False, **pick}
    assert make_judge(load_profile("tiny", judge=single).judge, cache)(PROMPT, "4", "5").order == "ab"
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    with pytest.raises(DpoKitError, match="set the environment variable"):
        make_judge(load_profile("tiny", judge={"kind": "anthropic"}).judge, cache)
