"""A million real coordinates of a field are decoded in bounded memory: the resident set of a new process."""

import json
import subprocess
import sys

import pytest

DECODE = """
import json, resource, sys, torch
from perceivers import FourierFeatures, InputArray, PerceiverIO, RotaryPositions, grid_coordinates
from perceivers.adapters import ArrayInput, ArrayOutput

torch.manual_seed(0)
features = FourierFeatures(2, [1, 2, 4, 8], projection=64)
rotary = RotaryPositions([1.0, 4.0], 2, ["decoder"]) if sys.argv[1] == "rotary" else None
inputs, outputs = {"sensors": ArrayInput(1, features)}, {"field": ArrayOutput(2, features)}
model = PerceiverIO(inputs, outputs, latents=32, channels=64, depth=1, heads=4, decoder_heads=4, rotary=rotary).eval()
sensors = InputArray(torch.randn(1, 80, 1), coordinates_BMG=torch.rand(1, 80, 2))
coordinates = grid_coordinates((1000, 1000)) + 1e-3
with torch.inference_mode():
    encoded = model.encode({"sensors": sensors}, latent_coordinates=torch.rand(32, 2))
    some = model.decode(encoded, {"field": coordinates[::99991]})["field"]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    field = model.decode(encoded, {"field": coordinates})["field"]
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
torch.testing.assert_close(field[:, ::99991], some)
print(json.dumps({"kilobytes": after - before, "shape": field.shape}))
"""


@pytest.mark.parametrize("positions", ["plain", "rotary"])
def test_a_million_coordinates_stay_within_max_memory(positions):
    """All at once, they take 1.6 GB; in chunks, 0.2 GB, of which 8 MB are the result."""
    done = subprocess.run([sys.executable, "-c", DECODE, positions], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["shape"] == [1, 10**6, 2]
    assert 1024 * found["kilobytes"] < 1.2 * 2**27  # the default of max_memory
