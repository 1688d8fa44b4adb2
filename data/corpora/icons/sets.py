"""The icon sets of the corpus: packages `@iconify-json/SET` of the npm registry, pinned.

Each holds one set with its SVG drawings, names, authors and licence. Licences are MIT, Apache 2.0,
ISC, CC0, CC-BY and, for arcticons and openmoji, CC-BY-SA.
"""

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Package:
    """One version of a package.

    Attributes:
        version: as npm has it.
        sha256: of the package's file, in hexadecimal.
    """

    version: str
    sha256: str


SETS = {
    "arcticons": Package(
        "1.2.58", "18e58aba1f8610673616c1ae80c7385366b098037573ffee74d7dfa2334da9d1"
    ),
    "bi": Package("1.2.7", "86a7f213711c929169dbcd64318cd678a0845385156fc707401ba07cbde4da0d"),
    "carbon": Package("1.2.29", "8e3059dc90933875439c29ff36ae4370767bc02d8beca6923b1f2bb856cf327a"),
    "emojione": Package(
        "1.2.3", "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e"
    ),
    "fluent-emoji-flat": Package(
        "1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175"
    ),
    "game-icons": Package(
        "1.2.4", "f5758efb34d91c4f50b941f355f16ee73938625e5996fabc25171288404460a4"
    ),
    "healthicons": Package(
        "1.2.13", "4c2552c45737788a6599da3c5b72610c7fb4e7f87075d401c56fa16d487d4caf"
    ),
    "heroicons": Package(
        "1.2.3", "5d9e7a61b36fb8f2444727807aca55bf613924bbb7d47fea408b7a9ea90ce2fb"
    ),
    "ic": Package("1.2.4", "48150a6da112bf59e616c21f98060117ffb1029bd1e54c1cc35d278f1d444025"),
    "icon-park": Package(
        "1.2.4", "c1a25212a31602aca93c3fa6f6b3288e89b9d7811afc132dfd78506e9d586b6f"
    ),
    "logos": Package("1.2.19", "1e8907c088bbf02eab8ee1b28f37e68ef22c380f2fb579ff99736b8ce5abf13a"),
    "lucide": Package(
        "1.2.137", "e74db8c3a55fff55bc82de21268c4bced9f65ff10aacc0d5f3a395b0e93243c3"
    ),
    "material-symbols": Package(
        "1.2.98", "142d50bf28e7db85362795be335ebc29dac611d73c404fc1e6fc5cc198e2b3d0"
    ),
    "mdi": Package("1.2.3", "ddd817a7213f91de51147943915c0cda8c8b818a53c92b5c068cfa9883c6d7ac"),
    "mingcute": Package(
        "1.2.8", "fec65f4430ac70a968e0e7fc7741e7064ba91e6da992b905f75c9d70c717bd2c"
    ),
    "noto": Package("1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
    "openmoji": Package(
        "1.2.29", "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5"
    ),
    "ph": Package("1.2.2", "e3a582a047d9829fc7e8842c660d8065e598d1b68bb58cb68e75a1f1e5a614cc"),
    "ri": Package("1.2.10", "f7ab45281b250fb0bfa5c5438fc334f010cbf695f5ac851b90b296ef4674fb07"),
    "simple-icons": Package(
        "1.2.103", "67906d8cc4f27497d4243ec8541cfd370357fccf159dd7c681de63ea096e94b7"
    ),
    "solar": Package("1.2.13", "9efec9045e9188c5dd5cf9de52f8ad968ffabee565026480a6c74bfe63b3bbc2"),
    "streamline": Package(
        "1.2.5", "b64ca35d4d9fb1f6e730d260ab59e1ded79b23d9f156f8d2f458df6a7aa4cf53"
    ),
    "tabler": Package("1.2.41", "3bf99af156d28d05568aff524a35ed1ba238df640a7835a5e02e1f8e439685f6"),
    "twemoji": Package("1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7"),
    "vscode-icons": Package(
        "1.2.97", "fd5676cb1891b527a32502a58e738139e329a0529e36c39dfd09503f2e6faa3c"
    ),
}

# Kept away from training as wholes: coloured outlines, flat colour emoji, white-cut silhouettes.
HELD_OUT_SETS = ("fluent-emoji-flat", "game-icons", "icon-park")


def check_sets(names: Iterable[str], what: str) -> None:
    """Raises a ValueError if one of the names is not that of a set; `what` is the option."""
    for name in names:
        if name not in SETS:
            raise ValueError(f"{what}: there is no set '{name}'; there are {', '.join(SETS)}")
