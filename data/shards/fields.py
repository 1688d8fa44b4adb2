"""Fields of a raw sample: the image's bytes, texts, the key.

In: a sample of the reader. Out: bytes for `images.decode`, text, a 64-bit key, or a
`SampleError` with its cause.
"""

import json

from ..errors import SampleError
from ..hashing import text_hash
from .reader import RawSample

IMAGE_EXTENSIONS = ("jpg", "png", "jpeg", "webp", "gif", "bmp", "ppm", "tif", "tiff")
# Texts of a sample are some hundred bytes; a JSON with boxes or read text some thousand.
MAX_TEXT_BYTES = 1 << 20
# Repairing a text (undoing nested `&amp;amp;...`) can take time with the square of its length:
# under a second up to here, hours for a mebibyte. Tokenizers keep much less than this.
MAX_CAPTION = 8192


def find_image(sample: RawSample, member: str | None = None) -> bytes:
    """Returns the bytes of the sample's image, or of a further one.

    Args:
        sample: a raw sample.
        member: what precedes the image extension: `negative` is `KEY.negative.png`.

    Raises:
        SampleError: no such member has an image extension (`no_image`).
    """
    for extension in IMAGE_EXTENSIONS:
        extension = f"{member}.{extension}" if member else extension
        if extension in sample:
            return sample[extension]  # pyright: ignore[reportReturnType]
    members = sorted(sample.keys() - {"__key__"})[:8]
    raise SampleError("no_image", f"'{sample['__key__']}' has only {members}")


def caption_member(field: str) -> str:
    """Returns the extension of the member that a caption field is read from."""
    return field.partition(":")[0]


def field_texts(sample: RawSample, field: str) -> list[str]:
    """Returns the texts of a caption field that are not blank, each cut after 8,192 characters.

    Args:
        sample: a raw sample.
        field: an extension (`txt`), or a value of a JSON member (`json:caption`): a text, a whole
            number, or a list of them. `json:names.de` is a value of an object in it.

    Raises:
        SampleError: the member is not UTF-8 or not JSON (`bad_text`), or larger than any text
            (`too_large`).
    """
    extension, _, name = field.partition(":")
    if name:
        value = value_at(read_json(sample, extension), name)
        values = value if isinstance(value, list) else [value]
        texts = [as_text(sample, extension, name, value) for value in values]
    else:
        texts = [read_text(sample, extension)]
    return [text[:MAX_CAPTION] for text in texts if text and not text.isspace()]


def sample_key(sample: RawSample, source: str, shard_name: str, key_field: str) -> int:
    """Returns a signed 64-bit identity of the sample that survives resuming and moving.

    With the JSON field it also survives re-sharding; without it, or with unreadable JSON, it
    depends on the shard's name.

    Args:
        sample: a raw sample.
        source: name of its source.
        shard_name: file name of its shard.
        key_field: field of the JSON member that identifies the sample within its source.

    Raises:
        SampleError: the JSON member is `too_large`.
    """
    try:
        stored = read_value(sample, "json", key_field)
    except SampleError as error:
        if error.cause == "too_large":
            raise
        stored = None
    if stored:
        return text_hash(source, stored)
    return text_hash(source, shard_name, sample["__key__"])


def read_text(sample: RawSample, extension: str) -> str | None:
    """Returns a member as text, None when there is no such member.

    Raises:
        SampleError: it is not UTF-8 or holds zero bytes (`bad_text`), or has more than a mebibyte
            (`too_large`).
    """
    data = sample.get(extension)
    if data is None:
        return None
    name = f"'{sample['__key__'][:100]}.{extension}'"
    if len(data) > MAX_TEXT_BYTES:
        raise SampleError("too_large", f"{name} has {len(data)} bytes, more than {MAX_TEXT_BYTES}")
    try:
        # Some editors begin a file with a byte-order mark.
        text = data.decode("utf-8-sig")  # pyright: ignore[reportAttributeAccessIssue]
    except UnicodeDecodeError as error:
        raise SampleError("bad_text", f"{name}: {error}") from error
    if "\0" in text:
        # What a crashed disk or an unfinished copy leaves behind.
        raise SampleError("bad_text", f"{name} has zero bytes in it")
    return text


def read_json(sample: RawSample, extension: str) -> dict[str, object]:
    """Returns the fields of a JSON member; none when there is no such member or no object in it.

    Raises:
        SampleError: as in `read_text`; what is not JSON is `bad_text`.
    """
    text = read_text(sample, extension)
    if text is None:
        return {}
    try:
        fields = json.loads(text)
    # Numbers of thousands of digits are a ValueError too.
    except (ValueError, RecursionError) as error:
        name = f"'{sample['__key__'][:100]}.{extension}'"
        raise SampleError("bad_text", f"{name} is not JSON: {error}") from error
    return fields if isinstance(fields, dict) else {}


def read_value(sample: RawSample, extension: str, name: str) -> str | None:
    """Returns a text or a whole number of a JSON member as text, None when it is absent.

    Raises:
        SampleError: as in `read_json`; half of a surrogate pair (`"\\ud83d"`) is `bad_text`.
    """
    return as_text(sample, extension, name, read_json(sample, extension).get(name))


def value_at(fields: dict[str, object], name: str) -> object:
    """Returns the field of this name, or the nested one of a dotted name; None when absent."""
    if name in fields:
        return fields[name]
    first, _, rest = name.partition(".")
    inner = fields.get(first)
    return value_at(inner, rest) if rest and isinstance(inner, dict) else None


def as_text(sample: RawSample, extension: str, name: str, value: object) -> str | None:
    """Returns a text or a whole number of a JSON member as text, None when it is anything else.

    Raises:
        SampleError: half of a surrogate pair (`bad_text`).
    """
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        where = f"'{sample['__key__'][:100]}.{extension}', {name}"
        raise SampleError("bad_text", f"{where}: {error}") from error
    return text
