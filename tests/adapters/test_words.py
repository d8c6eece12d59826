import pytest
import torch

from perceivers import InputArray, PerceiversError
from perceivers.adapters import WordInput


@pytest.fixture
def adapter():
    adapter = WordInput(50, 6, 4, 16)
    torch.nn.init.normal_(adapter.embedding.weight)
    return adapter


def test_a_word_is_the_sum_of_its_hashes_with_its_place(adapter):
    hashes = torch.tensor([[[7, 0, 3], [7, 7, 0]]])  # hash 0 stands for none
    weight = adapter.embedding.weight
    sums = torch.stack([weight[7] + weight[3], 2 * weight[7]])  # hash 0 stands for none
    want = sums @ adapter.linear.weight.T + adapter.linear.bias + adapter.positions.table_SF[:2]
    torch.testing.assert_close(adapter(hashes).x_BMC[0, 1:], want)


def test_the_first_element_is_the_sum_of_the_words(adapter):
    """Over the square root of their number, whatever the padding."""
    hashes = torch.tensor([[[7, 0, 3], [5, 7, 0], [0, 0, 0]]])
    weight = adapter.embedding.weight
    want = (2 * weight[7] + weight[3] + weight[5]) / 2**0.5 @ adapter.linear.weight.T + adapter.linear.bias
    for words, mask in ((hashes, torch.tensor([[True, True, False]])), (hashes[:, :2], None)):
        torch.testing.assert_close(adapter(InputArray(words, mask)).x_BMC[0, 0], want)


def test_the_vector_of_no_hash_is_not_trained(adapter):
    adapter(torch.tensor([[[7, 0, 3]]])).x_BMC.sum().backward()
    assert adapter.embedding.weight.grad.abs().sum(1).nonzero().flatten().tolist() == [3, 7]


def test_vectors_can_be_kept_as_they_are():
    adapter = WordInput(50, 6, 4, 16, is_trained=False)
    adapter(torch.tensor([[[7, 0, 3]]])).x_BMC.sum().backward()
    assert adapter.embedding.weight.grad is None
    assert adapter.linear.weight.grad.abs().sum() > 0


def test_texts_of_different_lengths_keep_their_mask(adapter):
    mask = torch.tensor([[True, True], [True, False]])
    array = adapter(InputArray(torch.ones(2, 2, 3, dtype=torch.int32), mask))
    assert array.mask_BM.tolist() == [[True, True, True], [True, True, False]]
    assert torch.equal(array.x_BMC[0, 1], array.x_BMC[1, 1])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(1, 5, 3, dtype=torch.int), "a text of 5 words was given: at most 4 are read"),
        (torch.full((1, 1, 3), 50), "hashes go from 50 to 50, but must be from 0 to 49"),
        (torch.zeros(1, 5, dtype=torch.int), r"words of shape \(1, 5\) and type torch.int32 were given"),
        (torch.zeros(1, 2, 3), "type torch.float32 were given, but integers"),
    ],
)
def test_wrong_words_are_refused(adapter, data, message):
    with pytest.raises(PerceiversError, match=message):
        adapter(data)
