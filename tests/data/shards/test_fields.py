"""Captions, images' members and keys of samples made by hand."""

import pytest

from counterpoint.data.errors import SampleError
from counterpoint.data.shards.fields import field_texts, find_image, sample_key


def sample(**members):
    return {"__key__": "k", **members}


def test_texts_of_a_field():
    both = sample(
        txt="é".encode(), json=b'{"caption": "other", "n": 3, "all": ["a", " ", 1, null]}'
    )
    assert field_texts(both, "txt") == ["é"]
    assert field_texts(both, "json:caption") == ["other"]
    assert field_texts(both, "json:n") == ["3"]
    assert field_texts(both, "json:all") == ["a", "1"]
    for field in ("json:none", "alt", "alt:caption"):
        assert field_texts(both, field) == []
    assert field_texts(sample(txt=b" \n"), "txt") == []


@pytest.mark.parametrize("members", [{"txt": b"\xff\xfe"}, {"txt": b"a\0b"}])
def test_bad_texts(members):
    with pytest.raises(SampleError, match="bad_text"):
        field_texts(sample(**members), "txt")


def test_images_are_found_by_extension():
    assert find_image(sample(txt=b"t", webp=b"w")) == b"w"
    with pytest.raises(SampleError, match="no_image: 'k' has only"):
        find_image(sample(txt=b"t"))


def test_keys():
    named = sample(json=b'{"key": "000000007", "uid": 5}')
    key = sample_key(named, "a", "00000.tar", "key")
    assert key == sample_key(named | {"__key__": "moved"}, "a", "00009.tar", "key")
    plain = sample(txt=b"")
    others = [
        sample_key(named, "b", "00000.tar", "key"),
        sample_key(named, "a", "00000.tar", "uid"),
        sample_key(plain, "a", "00000.tar", "key"),
        sample_key(plain, "a", "00001.tar", "key"),
        sample_key(plain | {"__key__": "l"}, "a", "00000.tar", "key"),
    ]
    assert len({key, *others}) == 6
    assert all(-(2**63) <= k < 2**63 for k in others)
    # A JSON that cannot be used is as good as none.
    for data in (b"[1]", b"{", b"\xff", b'{"key": null}', b"[" * 100_000):
        broken = sample(json=data)
        assert sample_key(broken, "a", "00000.tar", "key") == others[2]
