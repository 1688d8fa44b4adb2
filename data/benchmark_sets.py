"""One data set in the layout of CLIP_benchmark, which DataComp's evaluation has, too.

    FOLDER/SPLIT/nshards.txt                        how many shards there are
    FOLDER/SPLIT/0.tar, 1.tar, ...                  KEY.webp (.jpg, .png) with KEY.cls or KEY.txt
    FOLDER/classnames.txt                           a class a line, as .cls counts them
    FOLDER/zeroshot_classification_templates.txt    a prompt a line, {c} is the class
    FOLDER/dataset_type.txt                         "retrieval": KEY.txt has a caption a line;
                                                    "multilabel": KEY.npy has a number a class

In: such a folder. Out: an `ImageSet`; numbers in KEY.npy (a group, a year) are its field `npy`.
"""

from pathlib import Path

from .image_sets import ShardSet

TYPE, CLASSES = "dataset_type.txt", "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"


class BenchmarkSet(ShardSet):
    """The images of one split.

    Args:
        folder: of the data set; the root itself by default.
        split: name of the split.
    """

    members = ("txt", "cls", "npy")

    def __init__(self, folder: str = "", split: str = "test"):
        super().__init__(str(Path(folder, split, "*.tar")))
        self.folder, self.split = folder, split

    @property
    def is_there(self) -> bool:
        return (self.root / self.folder).is_dir()

    def file(self, name: str) -> Path:
        """Returns where a file of the data set is."""
        return self.root / self.folder / name

    def lines(self, name: str) -> list[str]:
        """Returns the lines of a file. One between others may be empty: it has a number, too.

        Raises:
            ValueError: there is no such file.
        """
        path = self.file(name)
        if not path.is_file():
            raise ValueError(
                f"{path.parent.resolve()} has no {name}: data_root has to be the folder of one "
                f"data set of CLIP_benchmark, which holds {self.split}/*.tar and that file, or the "
                "folder around it that the suite names"
            )
        return [line.strip() for line in path.read_text().rstrip().splitlines()]

    def paths(self) -> list[str]:
        """Returns the shards that nshards.txt counts; all there are without it.

        Raises:
            ValueError: one is missing.
        """
        count = self.file(f"{self.split}/nshards.txt")
        if not count.is_file():
            return super().paths()
        shards = [self.file(f"{self.split}/{i}.tar") for i in range(int(count.read_text()))]
        if missing := [path.name for path in shards if not path.is_file()]:
            raise ValueError(
                f"{count} says {len(shards)} shards, and {len(missing)} are missing, such as "
                f"{missing[0]}: fetch them again"
            )
        return [str(path) for path in shards]
