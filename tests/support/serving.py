"""Services to test, and servers in processes of their own."""

import base64
import io
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from fastapi.testclient import TestClient
from PIL import Image

from perceivers.errors import PerceiversError
from perceivers.serving.app import Limits, create_app
from perceivers.serving.service import Message, Service, open_service
from tests.support.models import classifier


class EchoRequest(Message):
    text: str


class Echo(Service):
    """Answers with the number of requests in its batch; some texts make it slow, fail, or have a bug."""

    task, title = "echo", "Repeats texts"
    request = answer = EchoRequest

    def __init__(self, seconds=0.0):
        self.model, self.seconds, self.batches = classifier(), seconds, []

    @classmethod
    def accepts(cls, model):
        return False

    def read(self, request):
        if request.text == "unreadable":
            raise PerceiversError("this text cannot be read: send another.")
        return request.text

    def compute(self, items):
        self.batches.append(list(items))
        time.sleep(self.seconds)
        if "refused" in items:
            raise PerceiversError("the answer has NaN.")
        if "bug" in items:
            raise ZeroDivisionError
        return [EchoRequest(text=f"{text} of {len(items)}") for text in items]


def client(service, **limits):
    return TestClient(create_app(service, "test", Limits(**limits)))


def serve(model, folder, **limits):
    """A client of the service of a model that was saved and loaded."""
    model.save(folder)
    return client(open_service(folder, "cpu"), **limits)


def draw_picture(seed, height=12, width=12):
    """Returns the content of a PNG file of random colors."""
    pixels = np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def encode(content):
    return base64.b64encode(content).decode()


@contextmanager
def running(*arguments):
    """Runs `perceivers serve` on a free port; yields its address and process."""
    command = [sys.executable, "-m", "perceivers", "serve", *map(str, arguments), "--port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        try:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            url = re.search(r"http://\S+", line).group()
            while httpx.get(f"{url}/health").status_code != 200:
                pass
            yield url, process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(20)


def resident_bytes(process):
    """Memory of a process, as Linux counts it."""
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
