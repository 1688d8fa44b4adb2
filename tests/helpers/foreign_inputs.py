"""Random weights, images and captions for models of other libraries."""

import torch


def shaken(model):
    """Random weights, biases and scales, too, which many models start with zeros and ones."""
    g = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=g)
    return model.eval()


def captions(context_length=12, vocab_size=50):
    """Ids that end with the largest one and are padded with zeros, and their lengths."""
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(1, vocab_size - 1, (3, context_length), generator=g)
    lengths = torch.tensor([4, context_length, 2])
    for row, length in zip(ids, lengths, strict=True):
        row[length - 1], row[length:] = vocab_size - 1, 0
    return ids, lengths


def images(size=32):
    g = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=g)
