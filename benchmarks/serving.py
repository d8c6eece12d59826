"""Measures a server with and without batching: requests per second and their latency, side by side.

    perceivers fit configs/image_classification/digits.yaml
    python benchmarks/serving.py runs/digits/model

Both servers run at the same time, and are asked in turns, so that both see the same machine.
"""

import argparse
import base64
import io
import re
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
from PIL import Image

ROUNDS = 5


@contextmanager
def run_server(model, max_batch):
    """Runs a server on a free port, and yields a client of it."""
    command = [sys.executable, "-m", "perceivers", "serve", model, "--port", "0", "--max-batch", str(max_batch)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        url = re.search(r"http://\S+", process.stdout.readline()).group()
        with httpx.Client(base_url=url, timeout=60) as client:
            yield client
        process.terminate()


def make_request(client):
    """Returns the example of a model, or else a picture."""
    example = client.get("/example")
    if example.status_code == 200:
        return example.content
    content = io.BytesIO()
    Image.effect_noise((64, 64), 100).save(content, "PNG")
    return b'{"picture": "%s"}' % base64.b64encode(content.getvalue())


def ask(client, request, count, threads):
    """Returns the seconds that requests take together, and those of each."""

    def ask_once(_):
        start = time.perf_counter()
        response = client.post("/predict", content=request, headers={"Content-Type": "application/json"})
        response.raise_for_status()
        return time.perf_counter() - start

    start = time.perf_counter()
    latencies = list(threads.map(ask_once, range(count)))
    return time.perf_counter() - start, latencies


def main():
    """Prints the figures of both servers, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=200, help="in each of five rounds")
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--max-batch", type=int, default=16)
    options = parser.parse_args()
    with (
        ThreadPoolExecutor(options.at_once) as threads,
        run_server(options.model, 1) as single,
        run_server(options.model, options.max_batch) as batched,
    ):
        clients, request = {1: single, options.max_batch: batched}, make_request(single)
        seconds, latencies = {size: [] for size in clients}, {size: [] for size in clients}
        for number in range(ROUNDS + 1):
            for size, client in clients.items():
                taken, each = ask(client, request, options.requests, threads)
                if number:  # the first round warms up
                    seconds[size].append(taken)
                    latencies[size] += each
        for size, client in clients.items():
            text = client.get("/metrics").text
            total, batches = (float(re.search(rf"batch_size_{end} (\S+)", text).group(1)) for end in ("sum", "count"))
            quantiles = statistics.quantiles(latencies[size], n=20)
            print(
                f"--max-batch {size}: {options.requests / statistics.median(seconds[size]):.0f} requests per second, "
                f"latency {1000 * quantiles[9]:.0f} ms (95%: {1000 * quantiles[18]:.0f} ms), "
                f"{total / batches:.1f} requests in a batch"
            )
        ratio = statistics.median(seconds[1]) / statistics.median(seconds[options.max_batch])
        print(f"batching: {ratio:.2f} times as many requests per second")


if __name__ == "__main__":
    main()
