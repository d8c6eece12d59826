import re

from perceivers.serving.metrics import Metrics


def test_the_text_format_counts_statuses_and_cumulative_buckets():
    metrics = Metrics()
    for status, seconds in ((200, 0.004), (200, 0.3), (422, 0.01), (504, 31.0)):
        metrics.observe_request(status, seconds)
    metrics.observe_batch(3, 0.2)
    metrics.observe_batch(1, 0.2)
    metrics.waiting = 5
    text = metrics.format()
    values = dict(re.findall(r"^(perceivers_\S+) (\S+)$", text, re.M))
    assert values['perceivers_requests_total{status="200"}'] == "2"
    assert values['perceivers_requests_total{status="504"}'] == "1"
    seconds = {bound: int(n) for bound, n in re.findall(r'request_seconds_bucket\{le="(\S+)"\} (\d+)', text)}
    assert (seconds["0.005"], seconds["0.01"], seconds["0.25"], seconds["0.5"], seconds["30.0"]) == (1, 2, 2, 3, 3)
    assert seconds["+Inf"] == int(values["perceivers_request_seconds_count"]) == 4
    assert float(values["perceivers_request_seconds_sum"]) == 0.004 + 0.3 + 0.01 + 31.0
    assert values['perceivers_batch_size_bucket{le="1"}'] == "1"
    assert values['perceivers_batch_size_bucket{le="4"}'] == values["perceivers_batch_size_count"] == "2"
    assert values["perceivers_batch_size_sum"] == "4.0"
    assert values["perceivers_waiting_requests"] == "5"
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
    assert types["perceivers_requests_total"] == "counter"
    assert types["perceivers_batch_size"] == "histogram"
    assert text.endswith("\n")
