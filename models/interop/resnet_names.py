"""Names of CLIP's ResNets: ours (timm's `resnet*_clip`) and OpenAI's."""

from collections.abc import Sequence

from .names import Rule
from .vit_names import TRUNK

CONVOLUTIONS = {1: "conv1_1x1", 2: "conv2_kxk", 3: "conv3_1x1"}


def resnet_rules(layers: Sequence[int]) -> list[Rule]:
    """Rules of a ResNet whose stages have so many layers, and of its projection."""
    rules = []
    for i in range(1, 4):
        rules.append(Rule(f"{TRUNK}stem.conv{i}.conv.{{}}", f"visual.conv{i}.{{}}"))
        rules.append(Rule(f"{TRUNK}stem.conv{i}.bn.{{}}", f"visual.bn{i}.{{}}"))
    for stage in range(len(layers)):
        ours, theirs = f"{TRUNK}stages.{stage}.{{}}.", f"visual.layer{stage + 1}.{{}}."
        for i, name in CONVOLUTIONS.items():
            rules.append(Rule(f"{ours}{name}.conv.{{}}", f"{theirs}conv{i}.{{}}"))
            rules.append(Rule(f"{ours}{name}.bn.{{}}", f"{theirs}bn{i}.{{}}"))
        rules.append(Rule(f"{ours}shortcut.conv.conv.{{}}", f"{theirs}downsample.0.{{}}"))
        rules.append(Rule(f"{ours}shortcut.conv.bn.{{}}", f"{theirs}downsample.1.{{}}"))
    pool = "visual.attnpool."
    rules += [Rule(f"{TRUNK}head.{name}.{{}}", f"{pool}{name}_proj.{{}}") for name in "qkv"]
    return [
        *rules,
        Rule(f"{TRUNK}head.pos_embed", f"{pool}positional_embedding"),
        Rule("image_projection.{}", f"{pool}c_proj.{{}}"),
    ]
