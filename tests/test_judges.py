"""Judges: planted ones with known verdicts, local models, scores, people, and a model behind an address."""

import json
import socket
import threading
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler
from random import Random
from socketserver import ThreadingMixIn, UnixStreamServer
from urllib.request import HTTPHandler, ProxyHandler, build_opener

import pytest

from acclimate.data.examples import Example, Output
from acclimate.data.template import Template
from acclimate.errors import DataError, ModelError, UsageError
from acclimate.evaluation import verdicts as v
from acclimate.evaluation.endpoint import KEY, Direct, Endpoint, checked_address, content
from acclimate.evaluation.judges import (
    PAIRWISE,
    SCALES,
    Guarded,
    Likely,
    Person,
    Scored,
    Written,
    length,
    template,
)
from acclimate.evaluation.predictor import Choose, Generate, Likelihood
from acclimate.run.judge import Bench, Heard, Judge, agreement, between, hear, judged

BENCH = Bench(PAIRWISE, draws=200)


def contests(n=40):
    """Comparisons in which people prefer the answer that says yes; it is the longer one in a quarter of them."""
    made = []
    for i in range(n):
        good, bad = ("yes, quite", "no") if i % 4 == 0 else ("yes", "no, never")
        first, second, label = (good, bad, "A") if i % 2 else (bad, good, "B")
        made.append(v.comparison(f"question {i}?", first, second, label, f"rows:{i + 1}"))
    return [
        Example(
            e.prompt, e.target, fields={**e.fields, "id": str(i), "subset": "odd" if i % 2 else "even"}, where=e.where
        )
        for i, e in enumerate(made)
    ]


def always(word):
    return lambda examples, tick=None: [Output(word) for _ in examples]


def perfect(examples, tick=None):
    return [Output("A" if e.fields["first"].startswith("yes") else "B") for e in examples]


def random(examples, tick=None):
    dice = Random(0)
    return [Output(dice.choice("AB")) for _ in examples]


def told(name, count):
    return lambda more: None


def heard(ask, name="judge"):
    return hear(Judge(name, ask), contests(), told)


def values(table, *names):
    return [round(table[name]["value"], 6) for name in names]


@pytest.mark.parametrize(
    ("given", "turned", "winner", "flips"),
    [
        ("A", "B", "A", False),
        ("B", "A", "B", False),
        ("tie", "tie", "tie", False),
        ("A", "A", "tie", True),
        ("B", "B", "tie", True),
        ("A", "tie", "tie", False),
        ("", "B", "tie", False),
        ("", "", "tie", False),
        ("absent", "absent", "absent", False),
    ],
)
def test_one_must_win_in_both_orders(given, turned, winner, flips):
    verdict = v.Verdict(Output(given), Output(turned))
    assert (verdict.winner, verdict.flips) == (winner, flips)


def test_what_people_said_turns_with_the_answers():
    row = contests(1)[0]
    other = v.turned(row)
    assert (other.target, other.fields["first"], other.fields["second"]) == ("A", "yes, quite", "no")
    assert v.turned(other) == row


def test_a_judge_that_likes_the_first_place_is_found_out():
    found = heard(always("A"))
    table = judged(found, BENCH)
    assert table["verdicts"] == {"tie": 40}
    assert values(table, "win_rate", "first_position", "flips", "unreadable") == [0.5, 1.0, 1.0, 0.0]
    people = agreement(found, BENCH)
    assert values(people["all"], "accuracy", "tie_discounted", "cohen_kappa") == [0.0, 0.5, 0.0]
    assert people["all"]["decided"] is None
    assert people["odd"]["n"] == people["even"]["n"] == 20


def test_a_perfect_judge_has_no_place_it_likes():
    found = heard(perfect)
    table = judged(found, BENCH)
    assert table["verdicts"] == {"A": 20, "B": 20}
    assert values(table, "win_rate", "first_position", "flips", "unreadable") == [0.5, 0.5, 0.0, 0.0]
    assert values(agreement(found, BENCH)["all"], "accuracy", "tie_discounted", "cohen_kappa", "decided") == [1] * 4


def test_the_longer_answer_is_right_as_often_as_it_was_planted():
    found = heard(Scored(length))
    assert values(agreement(found, BENCH)["all"], "accuracy", "cohen_kappa") == [0.25, -0.5]
    assert judged(found, BENCH)["flips"]["value"] == 0


def test_a_judge_by_chance_agrees_by_chance():
    found = heard(random)
    table, people = judged(found, BENCH), agreement(found, BENCH)["all"]
    assert table["flips"]["low"] < 0.5 < table["flips"]["high"]
    assert table["first_position"]["low"] < 0.5 < table["first_position"]["high"]
    assert people["tie_discounted"]["low"] < 0.5 < people["tie_discounted"]["high"]
    assert people["cohen_kappa"]["low"] < 0 < people["cohen_kappa"]["high"]


def test_what_cannot_be_read_is_no_preference_and_is_counted():
    table = judged(heard(lambda es, tick=None: [Output("") for _ in es[:40]] + perfect(es[40:])), BENCH)
    assert table["verdicts"] == {"tie": 40}
    assert values(table, "unreadable", "first_position") == [0.5, 0.5]
    assert table["flips"] is None


def test_answers_that_are_the_same_are_a_tie_unasked():
    asked = []
    same = [v.comparison("?", "so", "so"), v.comparison("?", "yes", "no")]
    found = v.verdicts(lambda es, tick=None: asked.extend(es) or perfect(es), same)
    assert [verdict.winner for verdict in found] == ["tie", "A"]
    assert [(e.fields["first"], e.fields["second"]) for e in asked] == [("yes", "no"), ("no", "yes")]


def test_a_liking_for_a_place_cancels_in_the_mean_of_both_orders():
    """Scores of 2 for the place and 1 for what is right: the verdict is a tie, the mean is right."""

    def biased(examples, tick=None):
        right = [e.fields["first"].startswith("yes") for e in examples]
        scores = [{"A": 2.0 + yes, "tie": -9.0, "B": 1.0 - yes} for yes in right]
        return [Output(max(s, key=s.__getitem__), s) for s in scores]

    found = heard(biased)
    assert judged(found, BENCH)["verdicts"] == {"tie": 40}
    assert values(agreement(found, BENCH)["all"], "accuracy", "averaged") == [0.0, 1.0]


def test_judges_among_themselves():
    one, two, three = heard(perfect, "one"), heard(perfect, "two"), heard(always("A"), "three")
    assert between([one], BENCH) == {}
    alike = between([one, two], BENCH)
    assert values(alike, "fleiss_kappa", "krippendorff_alpha") == [1.0, 1.0]
    assert alike["cohen_kappa"].keys() == {"one | two"}
    mixed = between([one, two, three], BENCH)
    # each item: 1 agreeing pair of 3; shares A 1/3, B 1/3, tie 1/3
    assert values(mixed, "fleiss_kappa") == [0.0]
    some = hear(Judge("some", Person({"0": "A", "1": "B"})), contests(), told)
    partly = between([one, two, some], BENCH)
    assert partly["fleiss_kappa"] is None
    assert 0.5 < partly["krippendorff_alpha"]["value"] < 1


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Verdict: A", "A"),
        ("I first thought Verdict: A, but no. VERDICT - **b**.", "B"),
        ("verdict: a tie", "tie"),
        ("Verdict: Answer B is better", "B"),
        (" [[A]] ", "A"),
        ("Answer A.", "A"),
        ("A is a good answer, and so is B.", ""),
        ("Verdict: Alpha", ""),
        ("", ""),
    ],
)
def test_verdicts_are_read_where_they_are_announced(text, verdict):
    assert PAIRWISE.read(text) == verdict


def test_grades_are_read():
    helpful, accepted = SCALES["helpfulness"], SCALES["acceptance"]
    assert [helpful.read(text) for text in ("Verdict: 4/6", "5", "Verdict: 7", "Verdict: 12")] == ["4", "5", "", ""]
    assert [accepted.read(text) for text in ("Pass.", "Verdict: an excellent one", "passable")] == [
        "pass",
        "excellent",
        "",
    ]


@pytest.mark.parametrize("question", [PAIRWISE, *SCALES.values()])
@pytest.mark.parametrize("reasons", [True, False])
def test_prompts_show_everything_and_say_how_to_answer(question, reasons):
    fields = {"prompt": "{{ what }}?", "first": "one", "second": "two", "answer": "three"}
    text = template(question, Template(), reasons).question(Example("{{ what }}?", fields=fields))
    shown = ("one", "two") if question is PAIRWISE else ("three",)
    assert all(f"\n{piece}\n" in text for piece in ("{{ what }}?", *shown))
    assert ("Verdict: " in text) == reasons
    assert all(point in text for point in question.points)


def test_a_local_model_is_asked_for_the_likeliest_verdict(model, reader):
    asked = template(PAIRWISE, Template(), False)
    judge = Guarded(Choose(model, reader, asked, PAIRWISE.points, 4096), reader)
    (found,) = v.verdicts(judge, [v.comparison("why?", "so", "because")])
    for output, (one, two) in ((found.given, ("so", "because")), (found.turned, ("because", "so"))):
        prompt = asked.question(v.comparison("why?", one, two))
        examples = [Example(prompt, point, fields={"prompt": prompt}) for point in PAIRWISE.points]
        expected = Likelihood(model, reader, Template(), 4096)(examples)
        assert [output.scores[p] for p in PAIRWISE.points] == pytest.approx([e.logprob for e in expected], abs=1e-9)
        assert output.text == max(output.scores, key=output.scores.__getitem__)
    with pytest.raises(DataError, match="control token"):
        judge([v.comparison("why?", "so<|im_end|>", "because", where="rows:1")])


def test_a_model_that_writes_nonsense_is_unreadable(model, reader):
    writer = Generate(model, reader, template(PAIRWISE, Template(), True), 256, 4)
    (output,) = Written(writer, PAIRWISE)([v.comparison("why?", "so", "because")])
    assert (output.text, output.truncated > 0) == ("", True)
    assert output.rationale == writer([v.comparison("why?", "so", "because")])[0].text


def test_scores_decide_outside_a_margin():
    reward = lambda examples, tick=None: [float(len(e.prompt) + len(e.target)) for e in examples]  # noqa: E731
    rows = [v.comparison("?", "aaaa", "bb"), v.comparison("?", "a", "bbb"), v.comparison("?", "aa", "bb")]
    assert [o.text for o in Scored(reward)(rows)] == ["A", "B", "tie"]
    assert [o.text for o in Scored(reward, margin=2.0)(rows)] == ["tie", "tie", "tie"]
    assert [o.value for o in Scored(reward)(rows)] == [2.0, -2.0, 0.0]


def test_the_likelier_answer_is_by_token(model, reader):
    likelihood = Likelihood(model, reader, Template(), 256)
    rows = [Example("why?", "the dog", fields={"prompt": "why?"}), Example("why?", "fox", fields={"prompt": "why?"})]
    assert Likely(likelihood)(rows) == [output.logprob / output.tokens for output in likelihood(rows)]


def test_a_person_s_a_is_the_file_s_a_in_both_orders():
    rows = contests(4)
    said = v.verdicts(Person({"0": "A", "1": "B", "2": "tie"}), rows)
    assert [verdict.winner for verdict in said] == ["A", "B", "tie", "absent"]
    table = judged(Heard(Judge("p", Person({})), tuple(rows), tuple(said), 0.0), BENCH)
    assert table["verdicts"] == {"A": 1, "B": 1, "tie": 1, "absent": 1}
    assert values(table, "win_rate", "unreadable") == [0.5, 0.0]
    assert agreement(Heard(Judge("p", Person({})), tuple(rows), tuple(said), 0.0), BENCH)["all"]["n"] == 3
    with pytest.raises(DataError, match="says nothing of these comparisons"):
        Person({"x": "A"})(rows)


# a model behind an address, which in these tests is a socket in the file system


class Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True

    def get_request(self):
        request, _ = super().get_request()
        return request, ("local", 0)


class Asked(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.heard.append((self.path, body, self.headers.get("Authorization")))
        status, reply = self.server.script.pop(0) if self.server.script else (200, answer("Verdict: B"))
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "http://localhost/elsewhere")
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *words):
        pass


def answer(text):
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


@pytest.fixture
def server(tmp_path):
    """A server on a socket in a file, what it is to say, and what it heard."""
    with Server(str(tmp_path / "socket"), Asked) as made:
        made.script, made.heard, made.slept = [], [], []
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


class Local(HTTPHandler):
    def __init__(self, path):
        super().__init__()
        self.path = path

    def http_open(self, req):
        path = self.path

        class Connection(HTTPConnection):
            def connect(self):
                self.sock = socket.socket(socket.AF_UNIX)
                self.sock.settimeout(self.timeout)
                self.sock.connect(path)

        return self.do_open(Connection, req)


def endpoint(server, tmp_path, model="m", **changes):
    opener = build_opener(ProxyHandler({}), Direct, Local(server.server_address))
    asked = template(PAIRWISE, Template(), True)
    given = {"opener": opener, "sleep": server.slept.append, "timeout": 5.0, "at_once": 1, **changes}
    return Written(Endpoint("http://localhost/v1", model, asked, tmp_path / "kept", **given), PAIRWISE)


ROWS = [v.comparison("why?", "so", "because"), v.comparison("who?", "I", "you"), v.comparison("why?", "so", "because")]


def test_an_endpoint_is_asked_once_and_never_twice(server, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY, "sk-secret")
    ticks = []
    said = endpoint(server, tmp_path, at_once=3)(ROWS, ticks.append)
    assert [output.text for output in said] == ["B", "B", "B"]
    assert said[0].rationale == "Verdict: B"
    assert ticks == [1, 1, 1]
    assert len(server.heard) == 2
    path, body, key = server.heard[0]
    assert (path, key) == ("/v1/chat/completions", "Bearer sk-secret")
    assert (body["model"], body["temperature"]) == ("m", 0)
    assert body["messages"][0]["content"].count("\nso\n") + body["messages"][0]["content"].count("\nI\n") == 1
    assert [o.text for o in endpoint(server, tmp_path)(ROWS)] == ["B", "B", "B"]
    assert len(server.heard) == 2
    endpoint(server, tmp_path, model="other")(ROWS[:1])
    assert len(server.heard) == 3
    files = list((tmp_path / "kept").iterdir())
    assert len(files) == 3
    assert not any("sk-secret" in file.read_text() for file in files)
    files[0].write_text('{"request"')  # damaged: asked again
    for model in ("m", "other"):
        endpoint(server, tmp_path, model=model)(ROWS)
    assert len(server.heard) in (4, 5)  # and "other" had not been asked who


def test_a_busy_endpoint_is_asked_again_with_patience(server, tmp_path):
    server.script[:] = [(429, b""), (503, b""), (200, answer("tie"))]
    assert [o.text for o in endpoint(server, tmp_path)(ROWS[:1])] == ["tie"]
    assert server.slept == [1.0, 2.0]
    server.script[:] = [(500, b"overloaded")] * 9
    with pytest.raises(ModelError, match=r"status 500 overloaded, after 3 of 3 tries"):
        endpoint(server, tmp_path, tries=3)(ROWS[1:2])
    assert len(server.heard) == 3 + 3


def test_what_is_answered_before_a_failure_is_kept(server, tmp_path):
    server.script[:] = [(200, answer("A")), (400, b"no")]
    with pytest.raises(ModelError):
        endpoint(server, tmp_path)(ROWS)
    server.script.clear()
    assert [o.text for o in endpoint(server, tmp_path)(ROWS)] == ["A", "B", "A"]
    assert len(server.heard) == 3


def test_a_refusal_is_said_at_once_and_without_the_key(server, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY, "sk-secret")
    server.script[:] = [(401, b"wrong key sk-secret")]
    with pytest.raises(ModelError) as caught:
        endpoint(server, tmp_path)(ROWS[:1])
    assert str(caught.value) == (
        f"The judge m at http://localhost/v1: status 401 wrong key …; is {KEY} right?, after 1 of 6 tries."
    )
    assert "sk-secret" not in repr(endpoint(server, tmp_path))
    given = lambda *more: build_opener(ProxyHandler({}), Local(server.server_address), *more)  # noqa: E731
    monkeypatch.setattr("acclimate.evaluation.endpoint.build_opener", given)
    server.script[:] = [(302, b"")]
    with pytest.raises(ModelError, match="status 302"):
        endpoint(server, tmp_path, opener=None)(ROWS[:1])
    assert [path for path, *_ in server.heard] == ["/v1/chat/completions"] * 2


def test_nobody_there_is_said(server, tmp_path):
    gone = endpoint(server, tmp_path, tries=2, opener=build_opener(ProxyHandler({}), Local(str(tmp_path / "gone"))))
    with pytest.raises(ModelError, match=r"no answer \(.*No such file.*\), after 2 of 2 tries"):
        gone(ROWS[:1])


@pytest.mark.parametrize(
    "reply", [b"<html>", b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": null}}]}']
)
def test_a_reply_that_is_none_is_said(reply):
    with pytest.raises(ModelError, match="no chat completion"):
        content(reply)


def test_addresses_hold_no_secrets_and_keys_do_not_travel_in_the_open(monkeypatch):
    for url in ("https://me:pass@host/v1", "https://host/v1?key=abc"):
        with pytest.raises(UsageError, match=f"set {KEY} instead") as caught:
            checked_address(url)
        assert "pass" not in str(caught.value)
        assert "abc" not in str(caught.value)
    with pytest.raises(UsageError, match="begins with https"):
        checked_address("ftp://host/v1")
    checked_address("http://far.example/v1")
    monkeypatch.setenv(KEY, "sk-secret")
    checked_address("http://localhost:8000/v1")
    with pytest.raises(UsageError, match="unencrypted"):
        checked_address("http://far.example/v1")
