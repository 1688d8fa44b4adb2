"""A recipe for tests: one view, one text, every source alike."""

from counterpoint.data.images.transforms import Transform
from counterpoint.data.recipe import Recipe, View
from counterpoint.data.sample import SampleLoader
from counterpoint.data.shards.manifest import Manifest
from counterpoint.data.shards.reader import ShardReader
from counterpoint.data.text.captions import FirstFound


def recipe(
    manifest: Manifest, transform: Transform, seed=0, size=16, views=None, texts=None, **more
):
    """Returns a recipe of `image` and `text`, and of further views and texts by name."""
    caption = dict.fromkeys(manifest.sources, FirstFound())
    extra = {
        f"text.{name}": dict.fromkeys(manifest.sources, policy)
        for name, policy in (texts or {}).items()
    }
    return Recipe(
        seed=seed,
        views={"image": View(transform, size)} | (views or {}),
        texts={"text": caption} | extra,
        key_fields=dict.fromkeys(manifest.sources, "key"),
        **more,
    )


def loader(manifest: Manifest, transform: Transform, selection=None, **choices) -> SampleLoader:
    """Returns a loader of local shards."""
    reader = ShardReader(manifest.urls)
    return SampleLoader(manifest, reader, recipe(manifest, transform, **choices), selection)
