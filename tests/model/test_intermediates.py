from concurrent.futures import ThreadPoolExecutor

import torch
from torch.testing import assert_close

from perceivers import PerceiverIO
from perceivers.adapters import ArrayInput, LabelOutput


def test_several_threads_may_record_one_model():
    sizes = {"latents": 3, "channels": 16, "depth": 2, "heads": 2}
    model = PerceiverIO({"points": ArrayInput(4)}, {"label": LabelOutput(2)}, **sizes).eval()

    def record(points):
        with torch.no_grad():
            return model.forward_intermediates({"points": points}, attention=True)[1]

    inputs = [torch.randn(1, 200, 4) for _ in range(6)]
    expected = [record(points) for points in inputs]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(record, inputs * 10))
    for one, other in zip(found, expected * 10, strict=True):
        assert_close(one.latents, other.latents)
        assert_close(one.attention, other.attention)
