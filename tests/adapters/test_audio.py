import pytest
import torch

from perceivers import FourierPositions, PerceiverIO, PerceiversError
from perceivers.adapters import AudioInput, AudioOutput


def positions():
    return FourierPositions((6,), 3, (24,))


def test_patches_hold_their_samples_and_their_place():
    adapter = AudioInput(4, positions())
    sound = torch.rand(2, 24) * 2 - 1
    array = adapter(sound)
    assert array.grid == (6,)
    assert array.x_BMC.shape == (2, 6, adapter.channels) == (2, 6, 4 + 7)
    assert torch.equal(array.x_BMC[1, 4, :4], sound[1, 16:20])
    angles = torch.pi * 0.6 * torch.tensor([1, 6.5, 12])  # place 4 of 0 ... 5; up to half the number of samples
    want = torch.cat([torch.tensor([0.6]), angles.sin(), angles.cos()])
    torch.testing.assert_close(array.x_BMC[1, 4, 4:], want, atol=1e-5, rtol=0)


def test_longer_sound_is_taken():
    assert AudioInput(4, positions())(torch.rand(1, 40)).x_BMC.shape[1] == 10


def model():
    model = PerceiverIO(
        {"audio": AudioInput(4, positions())}, {"audio": AudioOutput(4, positions())}, 3, 16, 1, heads=2
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def test_samples_stand_where_their_query_asked():
    chosen = model()
    encoded = chosen.encode({"audio": torch.rand(2, 24)})
    sound = chosen.decode(encoded)["audio"]
    assert sound.shape == (2, 24)
    y_BOE = chosen.decoder(chosen.outputs["audio"].positions()[4].expand(2, 1, -1), encoded.z_BND)
    torch.testing.assert_close(sound[:, 16:20], chosen.heads["audio"](y_BOE)[:, 0])


@pytest.mark.parametrize("points", [[3, 0, 5, 3], [[3, 0], [5, 1]]])
@pytest.mark.parametrize("max_memory", [None, 1])
def test_some_patches_are_those_of_the_full_sound(points, max_memory):
    chosen = model()
    encoded = chosen.encode({"audio": torch.rand(2, 24)})
    points = torch.tensor(points)
    full = chosen.decode(encoded, max_memory=None)["audio"].view(2, 6, 4)
    some = chosen.decode(encoded, {"audio": points}, max_memory)["audio"]
    torch.testing.assert_close(some, full.take_along_dim(points.expand(2, -1)[..., None], 1))


def test_wrong_sound_is_refused():
    for shape in ((1, 23), (24,), (1, 24, 1)):
        with pytest.raises(PerceiversError, match=r"is expected, with samples a multiple of 4"):
            AudioInput(4, positions())(torch.rand(*shape))
