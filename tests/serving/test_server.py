"""Servers in processes of their own, on the loopback."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import pytest

from perceivers.images.classify import classify_image
from perceivers.serving import server
from tests.support.cli import fails
from tests.support.models import classifier
from tests.support.serving import draw_picture, encode, resident_bytes, running

REQUESTS, AT_ONCE = 200, 16


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    model = classifier(crop=1.0)
    folder = tmp_path_factory.mktemp("classifier")
    model.save(folder)
    return folder, model


@pytest.fixture(scope="module")
def served(model):
    with running(model[0], "--max-size", "0.1", "--max-queue", "32", "--timeout", "5") as (url, process):
        yield url, process


def connect(url):
    address = httpx.URL(url)
    return socket.create_connection((address.host, address.port), 5)


def body_of(seed):
    return {"picture": encode(draw_picture(seed)), "top": 10}


def assert_it_still_answers(url):
    answer = httpx.post(f"{url}/predict", json=body_of(0), timeout=10)
    assert answer.status_code == 200, answer.text
    assert httpx.get(f"{url}/health").json() == {"status": "ok", "waiting": 0}


def test_every_answer_under_load_is_that_of_the_model_and_memory_does_not_grow(served, model, tmp_path):
    url, process = served
    paths = [tmp_path / f"{seed}.png" for seed in range(REQUESTS)]
    for seed, path in enumerate(paths):
        path.write_bytes(draw_picture(seed))
    expected = classify_image(model[1], paths)
    with httpx.Client(base_url=url, timeout=20) as client, ThreadPoolExecutor(AT_ONCE) as threads:

        def ask(seed):
            return client.post("/predict", json=body_of(seed))

        list(threads.map(ask, range(REQUESTS)))  # the first requests fill caches
        before, metrics = resident_bytes(process), client.get("/metrics").text
        answers = list(threads.map(ask, range(REQUESTS)))
        grown = resident_bytes(process) - before
        after = client.get("/metrics").text
    for answer, classes in zip(answers, expected, strict=True):
        assert answer.status_code == 200
        found = {row["name"]: row["probability"] for row in answer.json()["classes"]}
        assert found == pytest.approx(classes, rel=1e-3)
    counts = [
        [int(float(re.search(rf"^perceivers_{name} (\S+)$", text, re.M).group(1))) for text in (metrics, after)]
        for name in (r"requests_total\{status=\"200\"\}", "batch_size_sum", "batch_size_count")
    ]
    assert [after - before for before, after in counts[:2]] == [REQUESTS, REQUESTS], "nothing is lost"
    assert counts[2][1] - counts[2][0] < REQUESTS / 2, "requests are computed together"
    assert grown < 8e6


def test_many_at_once_are_answered_or_refused(served):
    url, _ = served
    connections = httpx.Limits(max_connections=200)
    with httpx.Client(base_url=url, timeout=20, limits=connections) as client, ThreadPoolExecutor(120) as threads:
        answers = list(threads.map(lambda seed: client.post("/predict", json=body_of(seed)), range(240)))
    statuses = {answer.status_code for answer in answers}
    assert 200 in statuses
    assert statuses <= {200, 503}
    assert_it_still_answers(url)


@pytest.mark.parametrize(
    ("head", "body", "answer"),
    [
        ("Content-Length: 5\r\nContent-Type: application/json", b"{nope", b"HTTP/1.1 400"),
        ("Content-Length: 200000\r\nContent-Type: application/json", b"", b"HTTP/1.1 413"),
        ("Content-Length: 99999999999999999999\r\nContent-Type: application/json", b"", b"HTTP/1.1 4"),
        ("Content-Length: -5\r\nContent-Type: application/json", b"", b"HTTP/1.1 400"),
        ("Content-Length: many\r\nContent-Type: application/json", b"", b"HTTP/1.1 400"),
        ("Content-Length: 5", b"hello", b"HTTP/1.1 415"),
        ("Transfer-Encoding: chunked\r\nContent-Type: application/json", b"zz\r\n", b"HTTP/1.1 400"),
        ("X: " + 100_000 * "a", b"", b"HTTP/1.1 4"),
    ],
    ids=["json", "large", "huge", "negative", "length", "type", "chunk", "header"],
)
def test_hostile_requests_are_refused(served, head, body, answer):
    url, _ = served
    with connect(url) as client:
        client.sendall(f"POST /predict HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode() + body)
        received = client.recv(1000)
        assert received.startswith(answer)
    assert_it_still_answers(url)


def test_an_endless_body_is_cut_off(served):
    """Without a length, in chunks: the answer comes, and the connection is closed, before it ends."""
    url, _ = served
    with connect(url) as client:
        head = (
            "POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n"
        )
        client.sendall(head.encode())
        sent = 0
        with suppress(ConnectionError):
            while sent < 1600:
                client.sendall(b"10000\r\n" + b"a" * 65536 + b"\r\n")
                sent += 1
        assert sent < 800
    assert_it_still_answers(url)


def test_connections_that_are_cut_off_do_no_harm(served):
    url, _ = served
    body = json.dumps(body_of(1)).encode()
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    whole = head.encode() + body
    for length in (0, 10, len(head), len(head) + 50, len(whole)):
        for _ in range(20):
            with connect(url) as client:
                client.sendall(whole[:length])
    deadline = time.monotonic() + 5
    while httpx.get(f"{url}/health").json()["waiting"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert_it_still_answers(url)


def test_a_body_that_does_not_arrive_is_given_up(model):
    with running(model[0], "--timeout", "0.3") as (url, _), connect(url) as client:
        client.sendall(
            b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
        )
        received = b"".join(iter(lambda: client.recv(1000), b""))  # until the server closes the connection
        assert received.startswith(b"HTTP/1.1 408")
        assert b"the request did not arrive within 0.3 seconds." in received


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["term", "interrupt"])
def test_it_stops_when_told_to(model, number, status):
    with running(model[0]) as (url, process):
        assert_it_still_answers(url)
        process.send_signal(number)
        assert process.wait(10) == status
        assert process.stderr.read() == ""
        with pytest.raises(httpx.ConnectError):
            httpx.get(url)


def test_it_stops_by_ctrl_c_where_a_shell_started_it_to_ignore_that(model):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with running(model[0]) as (_, process):
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 130
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_was_accepted_is_answered_before_it_stops():
    with running() as (url, process), ThreadPoolExecutor(1) as thread:
        example = httpx.get(f"{url}/example").json()
        answer = thread.submit(httpx.post, f"{url}/predict", json=example, timeout=20)
        while not httpx.get(f"{url}/health").json()["waiting"]:
            assert not answer.done()
        process.send_signal(signal.SIGTERM)
        assert answer.result().status_code == 200
        assert process.wait(10) == 0


def test_a_port_in_use_is_one_sentence_before_the_model_loads(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(server, "open_service", lambda *_: pytest.fail("the model is loaded"))
    monkeypatch.setattr(server.signal, "signal", lambda *_: None)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        error = fails(capsys, "serve", str(tmp_path), "--port", port)
        assert error == f"perceivers: port {port} of 127.0.0.1 is in use: give another --port, or 0 for any.\n"
    assert "the server cannot listen at 203.0.113.1, port 0: " in fails(
        capsys, "serve", "--host", "203.0.113.1", "--port", "0"
    )


def test_a_model_that_does_not_exist_is_one_sentence(tmp_path):
    command = [sys.executable, "-m", "perceivers", "serve", str(tmp_path / "nowhere"), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"perceivers: {tmp_path / 'nowhere'} is neither a folder nor a file here")
    assert done.stderr.count("\n") == 1
