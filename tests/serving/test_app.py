import json
import re
import threading

import pytest

from perceivers.serving.app import PAGE
from tests.support.serving import Echo, client

JSON = {"Content-Type": "application/json"}


def metric(api, name):
    return float(re.search(rf"^perceivers_{re.escape(name)} (\S+)$", api.get("/metrics").text, re.M).group(1))


def ask_at_once(api, texts):
    """Asks in as many threads; returns the responses in order."""
    responses = {}

    def ask(index):
        responses[index] = api.post("/predict", json={"text": texts[index]})

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [responses[index] for index in range(len(texts))]


def test_concurrent_requests_are_computed_in_batches_and_counted():
    service = Echo(0.05)
    with client(service, max_batch=4) as api:
        answers = ask_at_once(api, [f"text {index}" for index in range(9)])
        assert [answer.status_code for answer in answers] == [200] * 9
        assert [answer.json()["text"].partition(" of ")[0] for answer in answers] == [f"text {n}" for n in range(9)]
        assert len(service.batches) <= 6
        assert max(map(len, service.batches)) == 4
        assert metric(api, 'requests_total{status="200"}') == metric(api, "batch_size_sum") == 9
        assert metric(api, "batch_size_count") == len(service.batches)
        assert metric(api, "waiting_requests") == 0


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        (b"", 400, "the request is not JSON: EOF while parsing a value at line 1 column 0."),
        (b'{"text": ', 400, "the request is not JSON: EOF while parsing a value at line 1 column 9."),
        (b"[" * 100_000, 400, "the request is not JSON: recursion limit exceeded at line 1 column 202."),
        (b'{"text": "\xff"}', 400, "the request is not JSON: invalid unicode code point at line 1 column 11."),
        (b'["text"]', 422, "the request: Input should be an object; /model has the schema of requests."),
        (b"{}", 422, "text: Field required; /model has the schema of requests."),
        (b'{"text": 5}', 422, "text: Input should be a valid string; /model has the schema of requests."),
        (b'{"text": "a", "txt": 5}', 422, "txt: Extra inputs are not permitted; /model has the schema of requests."),
        (b'{"text": "unreadable"}', 422, "this text cannot be read: send another."),
        (b'{"text": "refused"}', 422, "the answer has NaN."),
        (b'{"text": "bug"}', 500, "the server failed at this request; its log says why."),
    ],
)
def test_a_bad_request_gets_one_sentence(body, status, error):
    with client(Echo()) as api:
        answer = api.post("/predict", content=body, headers=JSON)
        assert (answer.status_code, answer.json()) == (status, {"error": error})
        assert metric(api, f'requests_total{{status="{status}"}}') == 1
        assert api.post("/predict", json={"text": "a"}).json() == {"text": "a of 1"}


def test_only_json_is_read():
    """A page of another site cannot send this type without asking, which it is not allowed."""
    with client(Echo()) as api:
        for headers in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}):
            answer = api.post("/predict", content=b'{"text": "a"}', headers=headers)
            assert answer.status_code == 415
            assert "with the header Content-Type: application/json" in answer.json()["error"]
        headers = {"Content-Type": "Application/JSON; charset=utf-8"}
        assert api.post("/predict", content=b'{"text": "a"}', headers=headers).status_code == 200


def test_a_request_that_is_too_large_is_refused_by_its_length_or_while_it_arrives():
    with client(Echo(), max_size=100) as api:
        fits = json.dumps({"text": "a" * 88}).encode()
        assert len(fits) == 100
        assert api.post("/predict", content=fits, headers=JSON).status_code == 200
        for content in (fits + b" ", iter([fits, b" ", b" " * 1000])):  # the second has no length
            answer = api.post("/predict", content=content, headers=JSON)
            assert answer.status_code == 413
            assert answer.json()["error"] == "the request is larger than 100 bytes: send a smaller one."


def test_more_requests_than_may_wait_are_refused():
    with client(Echo(0.3), max_queue=3, max_batch=1) as api:
        answers = ask_at_once(api, list("abcdefgh"))
        statuses = [answer.status_code for answer in answers]
        assert sorted(statuses) == [200] * 3 + [503] * 5
        refused = answers[statuses.index(503)]
        assert refused.json()["error"] == "3 requests are waiting already: try again later."
        assert refused.headers["Retry-After"] == "1"
        assert api.post("/predict", json={"text": "a"}).status_code == 200


def test_a_request_that_takes_too_long_is_given_up():
    service = Echo(0.3)
    with client(service, timeout=0.1, max_batch=1) as api:
        answers = ask_at_once(api, list("abcd"))
        assert {answer.status_code for answer in answers} == {504}
        assert answers[0].json()["error"] == "there was no answer within 0.1 seconds."
    assert len(service.batches) == 1, "the others were given up before they were computed"


def test_the_server_says_what_it_is():
    with client(Echo(), max_batch=3, timeout=7) as api:
        assert api.get("/health").json() == {"status": "ok", "waiting": 0}
        model = api.get("/model").json()
        assert (model["name"], model["task"], model["class"], model["device"]) == ("test", "echo", "PerceiverIO", "cpu")
        assert model["parameters"] == sum(parameter.numel() for parameter in Echo().model.parameters())
        assert model["limits"] == {"max_batch": 3, "max_queue": 64, "max_size": 16_000_000, "timeout": 7}
        assert model["request"]["required"] == ["text"]
        missing = api.get("/example")
        assert (missing.status_code, missing.json()) == (404, {"error": "this model has no example."})
        unknown = api.get("/predictions")
        assert unknown.status_code == 404
        assert unknown.json() == {"error": "Not Found; /openapi.json lists the endpoints."}
        assert api.get("/predict").status_code == 405
        schema = api.get("/openapi.json").json()
        assert set(schema["paths"]) == {"/predict", "/model", "/example", "/health", "/metrics"}
        post = schema["paths"]["/predict"]["post"]
        assert post["requestBody"]["content"]["application/json"]["schema"]["properties"]["text"]["type"] == "string"
        assert set(post["responses"]) == {"200", "400", "408", "413", "415", "422", "500", "503", "504"}


def test_the_threads_end_with_the_server():
    with client(Echo()):
        thread = next(thread for thread in threading.enumerate() if thread.name == "compute")
        assert thread.is_alive()
    assert not thread.is_alive()


def test_the_page_needs_nothing_from_elsewhere():
    with client(Echo()) as api:
        page = api.get("/")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    text = PAGE.read_text()
    assert page.text == text
    assert not re.search(r"(src|href)=\"?(https?:)?//|@import|url\(", text)
    assert "innerHTML" not in text, "answers are text, never code"
