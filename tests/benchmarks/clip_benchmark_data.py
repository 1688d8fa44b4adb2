"""Held-out emoji in CLIP_benchmark's WebDataset layout: a classification and a retrieval.

    counterpoint data emoji emoji
    python tests/benchmarks/clip_benchmark_data.py emoji wds

writes wds/skin_tones (five classes, four prompts) and wds/retrieval (one drawing style, so that
each caption has one image). docs/howto/export.md says what CLIP_benchmark and `counterpoint
evaluate` measure on them.
"""

import argparse
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

TONES = ["light", "medium-light", "medium", "medium-dark", "dark"]
PROMPTS = ["{c} skin tone", "person {c} skin tone", "woman {c} skin tone", "man {c} skin tone"]
STYLE = "twemoji"


def samples(corpus: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yields key and files by ending."""
    for path in sorted(corpus.glob("heldout/*.tar")):
        files: dict[str, dict[str, bytes]] = {}
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                key, _, ending = member.name.partition(".")
                content = tar.extractfile(member)
                assert content is not None
                files.setdefault(key, {})[ending] = content.read()
        yield from sorted(files.items())


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    tones, pairs = (options.out / name for name in ("skin_tones", "retrieval"))
    for folder in (tones, pairs):
        (folder / "test").mkdir(parents=True)
        (folder / "test" / "nshards.txt").write_text("1\n")
    (tones / "classnames.txt").write_text("\n".join(TONES) + "\n")
    (tones / "zeroshot_classification_templates.txt").write_text("\n".join(PROMPTS) + "\n")
    (pairs / "dataset_type.txt").write_text("retrieval\n")
    classified, retrieved = (folder / "test" / "0.tar" for folder in (tones, pairs))
    with tarfile.open(classified, "w") as to_classify, tarfile.open(retrieved, "w") as to_retrieve:
        for key, files in samples(options.corpus):
            image, about = files["png"], json.loads(files["json"])
            if about.get("skin_tone") in TONES:
                add(to_classify, f"{key}.png", image)
                add(to_classify, f"{key}.cls", str(TONES.index(about["skin_tone"])).encode())
            if about["style"] == STYLE:
                add(to_retrieve, f"{key}.png", image)
                add(to_retrieve, f"{key}.txt", files["txt"])


if __name__ == "__main__":
    main()
