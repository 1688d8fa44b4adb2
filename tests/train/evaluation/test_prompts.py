"""Means of class prompts, and those that are stored: the same on every rank."""

from pathlib import Path

import torch
import toy_evaluation as toy

from counterpoint.train.evaluation import prompts
from counterpoint.train.evaluation.encode import Encoder
from counterpoint.train.evaluation.prompts import PromptCache, chunks

PROMPTS = [["c1"], ["c2", "a c2", "the c2"], ["c3", "c4"], ["c5"]]


def encoder(cache=None, rank=0, world_size=1):
    parts = toy.Toy(), toy.tokenizer, toy.transform, torch.device("cpu")
    return Encoder(*parts, batch_size=2, rank=rank, world_size=world_size, prompts=cache)


def expected():
    _, text = toy.features(toy.Toy(), toy.ToyImages(1))
    return torch.stack([text(texts).mean(0) for texts in PROMPTS])


@torch.no_grad()
def test_means_do_not_depend_on_the_pieces(monkeypatch):
    assert len(list(chunks(PROMPTS))) == 1
    means = encoder().prompt_means(PROMPTS)
    torch.testing.assert_close(means.double(), expected(), atol=1e-6, rtol=0)
    monkeypatch.setattr(prompts, "CHUNK_PROMPTS", 2)
    assert [len(part) for part in chunks(PROMPTS)] == [1, 1, 1, 1]
    monkeypatch.setattr(prompts, "CHUNK_PROMPTS", 4)
    assert [len(part) for part in chunks(PROMPTS)] == [2, 2]
    torch.testing.assert_close(encoder().prompt_means(PROMPTS), means, atol=1e-6, rtol=0)


def means_and_calls(rank, world_size, folder, sees_files):
    """The second of two evaluations; ranks that see no files have another folder."""
    folder = Path(folder) / ("shared" if sees_files or rank == 0 else "elsewhere")
    for _ in range(2):
        made = encoder(PromptCache(folder, toy.Toy(), ""), rank, world_size)
        with torch.no_grad():
            means = made.prompt_means(PROMPTS)
        torch.distributed.barrier()  # as between two commands
    return means, len(made.model.calls), len(list(folder.rglob("*.safetensors")))


def test_ranks_find_them_together_or_not_at_all(gloo, tmp_path):
    for means, num_calls, num_files in gloo(2, means_and_calls, str(tmp_path / "a"), True):
        torch.testing.assert_close(means.double(), expected(), atol=1e-6, rtol=0)
        assert (num_calls, num_files) == (0, 1)
    # One rank alone must not call the towers: the others would wait for its features.
    results = gloo(2, means_and_calls, str(tmp_path / "b"), False)
    assert [(calls, files) for _, calls, files in results] == [(2, 1), (2, 0)]
    torch.testing.assert_close(results[0][0], results[1][0])
