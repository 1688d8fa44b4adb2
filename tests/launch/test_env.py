"""What a process sets for itself before anything runs."""

import torch

from counterpoint.launch.env import prepare


def test_float32_products_stay_float32():
    assert torch.get_float32_matmul_precision() == "highest"
    prepare()
    assert torch.get_float32_matmul_precision() == "highest"
