import pytest
import torch

from perceivers import InputArray, PerceiversError
from perceivers.adapters import CategoryInput


def test_a_category_is_its_vector():
    adapter = CategoryInput(5, 8)
    array = adapter(torch.tensor([3, 0, 3]))
    assert array.x_BMC.shape == (3, 1, 8)
    assert array.mask_BM is None
    assert torch.equal(array.x_BMC[:, 0], adapter.embedding.weight[[3, 0, 3]])


def test_a_set_is_an_element_for_each_category():
    adapter = CategoryInput(5, 8)
    mask = torch.tensor([[True, True], [True, False]])
    array = adapter(InputArray(torch.tensor([[1, 4], [2, 0]]), mask))
    assert torch.equal(array.x_BMC[0], adapter.embedding.weight[[1, 4]])
    assert torch.equal(array.x_BMC[1, 0], adapter.embedding.weight[2])
    assert torch.equal(array.mask_BM, mask)


def test_vectors_differ_by_about_one():
    """As elements of other inputs do, whatever their channels: the variance of a vector's elements is 1 / C."""
    weight = CategoryInput(2000, 64).embedding.weight
    assert weight.square().sum(1).mean().item() == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.tensor([5]), "categories go from 5 to 5, but must be from 0 to 4"),
        (torch.tensor([-1]), "categories go from -1 to -1"),
        (torch.tensor([1.0]), r"categories of shape \(1,\) and type torch.float32 were given"),
        (torch.tensor(1), r"categories of shape \(\) and type torch.int64"),
    ],
)
def test_wrong_categories_are_refused(data, message):
    with pytest.raises(PerceiversError, match=message):
        CategoryInput(5, 8)(data)
