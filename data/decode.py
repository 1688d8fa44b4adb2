"""Raw bytes of one sample to a picture's bytes, a caption and a key.

In: what the reader returns. Out: bytes for `picture`, text, a 64-bit key. Whatever is wrong with
the sample ends in a `SampleError` with its cause.
"""

import json
from collections.abc import Sequence

from .errors import SampleError
from .hashing import text_hash
from .reader import RawSample

IMAGE_EXTENSIONS = ("jpg", "png", "jpeg", "webp", "gif", "bmp", "ppm", "tif", "tiff")


def find_image(sample: RawSample) -> bytes:
    """Returns the bytes of the sample's picture.

    Raises:
        SampleError: No member has an image extension.
    """
    for extension in IMAGE_EXTENSIONS:
        if extension in sample:
            return sample[extension]  # pyright: ignore[reportReturnType]
    raise SampleError("no_image", f"'{sample['__key__']}' has only {sorted(sample)}")


def caption_member(field: str) -> str:
    """Returns the extension of the member that a caption field is read from."""
    return field.partition(":")[0]


def decode_caption(sample: RawSample, fields: Sequence[str]) -> str:
    """Returns the first caption found.

    Args:
        sample: A raw sample.
        fields: Where to look, in this order: an extension (`txt`) or a text value of a JSON member
            (`json:caption`).

    Raises:
        SampleError: None of the fields holds text (`no_caption`), or it is not UTF-8 (`bad_text`).
    """
    for field in fields:
        extension, _, name = field.partition(":")
        data = sample.get(extension)
        if data is None:
            continue
        try:
            text = data.decode("utf-8")  # pyright: ignore[reportAttributeAccessIssue]
        except UnicodeDecodeError as error:
            raise SampleError("bad_text", f"'{sample['__key__']}.{extension}': {error}") from error
        if name:
            text = _json_value(text, name) or ""
        if text.strip():
            return text
    raise SampleError("no_caption", f"'{sample['__key__']}' has no text in {', '.join(fields)}")


def sample_key(sample: RawSample, source: str, shard_name: str, key_field: str) -> int:
    """Returns a signed 64-bit identity of the sample that survives resuming and moving.

    With the JSON field it also survives re-sharding; without it, it is tied to the shard's name.

    Args:
        sample: A raw sample.
        source: Name of its source.
        shard_name: File name of its shard.
        key_field: Field of the JSON member that identifies the sample within its source.
    """
    data = sample.get("json")
    if isinstance(data, bytes):
        own = _json_value(data.decode("utf-8", "replace"), key_field)
        if own:
            return text_hash(source, own)
    return text_hash(source, shard_name, sample["__key__"])


def _json_value(text: str, name: str) -> str | None:
    """Returns a text or number of a JSON object as text, None when it is not there."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return None
    value = fields.get(name) if isinstance(fields, dict) else None
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None
