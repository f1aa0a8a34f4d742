"""What tests of the operators share."""

import pytest
import torch


@pytest.fixture
def two_threads():
    """PyTorch splits over two; afterwards as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
