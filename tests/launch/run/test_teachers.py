"""Teachers of a run file: whose weights they hold, and what is refused before training."""

import copy
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import tiny
import torch
import yaml
from reversed_words import Reversed

from counterpoint.data.images.enclosing_crop import EnclosingCrop
from counterpoint.data.images.transforms import EvalTransform, TrainTransform
from counterpoint.data.recipe import Text, View
from counterpoint.data.text import tokenize
from counterpoint.launch.config import parser as run_config
from counterpoint.launch.run.build import build_module, build_parts
from counterpoint.launch.run.start.initial import load_initial_weights
from counterpoint.launch.run.start.teachers import load_teachers
from counterpoint.losses.distillation.feature_regression import FeatureRegression
from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.objective import Objective
from counterpoint.losses.wrappers.masked import Masked
from counterpoint.models.image import TimmTower
from counterpoint.models.reducers.attentive import AttentivePatches
from counterpoint.models.reducers.base import ImageReducer
from counterpoint.models.teachers.frozen import Frozen, FrozenTowers, Teacher
from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.two_tower import TwoTower
from counterpoint.train.checkpointing import checkpoint as checkpoints
from counterpoint.train.ema import EmaConfig
from counterpoint.train.features import check_needs

ROOT = Path(__file__).resolve().parents[3]


def parsed(folder, values):
    parser = run_config.make_parser()
    path = tiny.write_config(folder, values)
    return parser, run_config.parse(parser, ["--config", str(path)])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    return build_parts(*parsed(folder, tiny.config(folder / "m")))


@pytest.fixture
def student(base):
    """Builds the slots of the tiny run with a term for each of `needs`."""

    def call(
        *needs: str, teachers=None, ema=None, init_from=None, views=None, texts=None
    ) -> SimpleNamespace:
        data = copy.copy(base.data)
        data.views, data.texts = views or {}, texts or {}
        terms = {
            need.replace(".", "_"): FeatureRegression(need.split(".")[2], need) for need in needs
        }
        changes = {
            "data": data,
            "teachers": teachers,
            "ema": ema,
            "init_from": init_from,
            "model": copy.deepcopy(base.model),
            "phases": copy.deepcopy(base.phases),
            "objective": Objective(terms or {"infonce": InfoNCE()}),
        }
        return SimpleNamespace(**vars(base) | changes)

    return call


@pytest.fixture(scope="module")
def other_run(tmp_path_factory):
    """A run folder of a wider model with two checkpoints, and its model as in the second."""
    folder = tmp_path_factory.mktemp("other")
    (folder / "checkpoints").mkdir()
    values = tiny.config(folder / "gone") | {"seed": 5}
    values["model"]["text"]["init_args"]["width"] = 24
    parser, config = parsed(folder, values)
    run_config.save(run_config.plain(parser, config), folder / "config.yaml")
    model = build_parts(parser, config).model
    for step in (1, 2):
        with torch.no_grad():
            model.image_projection.weight.add_(step)
        state = {f"model.{n}": v.clone() for n, v in model.state_dict().items()}
        torch.save({"state_dict": state}, folder / "checkpoints" / f"step-{step:08d}.ckpt")
    return folder, model.eval()


def batch():
    g = torch.Generator().manual_seed(0)
    return {
        "image": torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=g),
        "text": torch.randint(1, 40000, (4, 8), generator=g),
        "text_length": torch.tensor([3, 8, 4, 5]),
    }


def test_a_run_is_loaded_with_its_own_architecture(student, other_run):
    folder, second = other_run
    first = copy.deepcopy(second)
    with torch.no_grad():
        first.image_projection.weight.sub_(2)
    teachers = {
        "newest": Frozen(str(folder)),
        "first": Frozen(str(folder / "checkpoints" / "step-00000001.ckpt")),
    }
    parts = student("teacher.newest.text", "teacher.first.image", teachers=teachers)
    parts.model.chunks = 3
    before = torch.get_rng_state()
    module = build_module(parts, load_teachers(parts))
    assert torch.equal(torch.get_rng_state(), before)
    for name, want in (("newest", second), ("first", first)):
        towers = module.teachers[name]
        got = towers(batch(), ("image", "text"))
        for feature, value in want(batch(), ("image", "text")).items():
            torch.testing.assert_close(got[feature], value.detach())
        assert towers.model.chunks == 3, "a teacher is encoded in as many parts"
        # Outside the state, the optimiser, and what is synchronised or trained.
        assert not {id(p) for p in towers.parameters()} & {id(p) for p in module.parameters()}
    assert not any("teacher" in name for name in module.state_dict())


def test_a_teacher_may_serve_a_mask_alone(student):
    class Attended(ImageReducer):
        needs = ("teacher.x.image.attention",)

    parts = student(teachers={"x": Frozen()}, init_from="somewhere")
    with pytest.raises(ValueError, match="no term needs the teacher 'x'"):
        load_teachers(parts)
    parts.phases.named["train"].image_reducer = Attended()
    parts.teachers = {}
    with pytest.raises(ValueError, match=r"phases.train.image_reducer needs 'teacher.x.image.att"):
        load_teachers(parts)
    parts.teachers = {"x": Ready(parts.model)}
    features = load_teachers(parts)["x"](batch(), {"image.attention"})
    assert features["image.attention"].shape == (4, 2, 2)
    parts.model.image.has_class_token = False
    with pytest.raises(ValueError, match="class_token: true"):
        load_teachers(parts)


class Ready(Teacher):
    """A model that is there already."""

    def __init__(self, model):
        self.model = model

    def build(self, load):
        return FrozenTowers(copy.deepcopy(self.model))


def test_a_file_holds_weights_of_the_own_architecture(student, tmp_path):
    needs, path = ("teacher.x.image",), tmp_path / "weights.safetensors"
    teachers = {"x": Frozen(str(path), precision="bfloat16")}
    state = {n: v + 1 for n, v in student().model.state_dict().items()}
    safetensors.torch.save_file(state, path)
    found = load_teachers(student(*needs, teachers=teachers))["x"].model.state_dict()
    assert all(torch.equal(found[n], v.to(found[n].dtype)) for n, v in state.items())
    low = {n for n, v in found.items() if v.dtype == torch.bfloat16}
    assert low == found.keys() - {"logit_scale"}

    state.pop("logit_scale")
    safetensors.torch.save_file(state, path)
    with pytest.raises(ValueError, match=r"1 missing \(logit_scale\)\); name the folder"):
        load_teachers(student(*needs, teachers=teachers))


def test_without_a_source_it_is_what_the_run_starts_from(student, other_run):
    # Another width of the text tower: what does not match stays as the seed made it.
    choices = {"teachers": {"x": Frozen()}, "init_from": str(other_run[0])}
    new, resumed = (student("teacher.x.image", **choices) for _ in range(2))
    load_initial_weights(new.model, SimpleNamespace(init_from=new.init_from, inherit_from=None))
    start = new.model.state_dict()
    for parts in (new, resumed):  # a resumed run loads its weights later
        state = load_teachers(parts)["x"].model.state_dict()
        assert all(torch.equal(state[name], start[name]) for name in start)
    assert not torch.equal(resumed.model.image_projection.weight, start["image_projection.weight"])
    with pytest.raises(ValueError, match="name its weights with init_from"):
        load_teachers(student("teacher.x.image", teachers={"x": Frozen()}))


def test_the_average_starts_as_the_student_and_is_in_the_state(student):
    module = build_module(student(ema=EmaConfig(0.9)))
    state = module.state_dict()
    names = module.model.state_dict().keys()
    assert all(torch.equal(state[f"ema.model.{n}"], state[f"model.{n}"]) for n in names)
    groups = module.optim.build(module.model, module.objective).param_groups
    trained = {id(p) for group in groups for p in group["params"]}
    assert not trained & {id(p) for p in module.ema.parameters()}


@pytest.mark.parametrize(
    ("needs", "teachers", "words"),
    [
        (
            ["teacher.x.image"],
            {},
            "'teacher.x.image', which the run does not have: configure teachers",
        ),
        ([], {"x": Frozen("a")}, "no term needs the teacher 'x'"),
        (["teacher.x.image"], {"image": Frozen("a")}, "the teacher 'image' needs another name"),
        (["teacher.x.image"], {"x": Frozen("no.safetensors")}, "no weights file no.safetensors"),
        (["teacher.x.image"], {"x": Frozen("runs/no")}, "file runs/no and no such run: train it"),
    ],
)
def test_what_cannot_work_is_refused(student, needs, teachers, words):
    with pytest.raises(ValueError) as caught:
        load_teachers(student(*needs, teachers=teachers))
    assert words in str(caught.value)


def test_inputs_must_fit_the_teacher(student, other_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(other_run[0], folder)
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    saved["data"]["tokenizer"] = {"class_path": "reversed_words.Reversed"}
    run_config.save(saved, folder / "config.yaml")
    teachers = {"x": Frozen(str(folder))}
    with pytest.raises(ValueError, match="trained with another tokenizer"):
        load_teachers(student("teacher.x.text", teachers=teachers))
    # Its images may be read, if they have its size.
    views = {"big": View(EvalTransform(), 20)}
    with pytest.raises(ValueError, match=r"get images of 20 pixels, and this teacher takes 16"):
        load_teachers(student("teacher.x.image.big.raw", teachers=teachers, views=views))

    saved["data"]["tokenizer"] = None
    saved["model"]["text"]["init_args"]["context_length"] = 6
    run_config.save(saved, folder / "config.yaml")
    path = checkpoints.newest(folder)
    state = checkpoints.load(path)
    state["state_dict"]["model.text.trunk.embeddings.position_embedding.weight"].resize_(6, 24)
    torch.save(state, path)
    with pytest.raises(ValueError, match="get texts of 8 tokens, and this teacher takes 6"):
        load_teachers(student("teacher.x.text", teachers=teachers))


def test_a_sidecar_provides_its_columns_and_where_it_has_rows(student):
    parts = student()
    term = Masked(FeatureRegression("image", "large.image"), "large.present")
    parts.objective = Objective({"fd": term})
    with pytest.raises(ValueError, match=r"'large.image', which the run does not have"):
        load_teachers(parts)
    parts.data.sidecars = {"large": SimpleNamespace(columns={"image": "image"})}
    load_teachers(parts)


class Other(Teacher):
    """A teacher of another library, with another tokenizer and longer texts."""

    def build(self, load):
        tower = ClipTextTower(8, 1, 1, context_length=12, vocab_size=49408)
        small = {"patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 1}
        image = TimmTower("vit_tiny_patch16_224", 16, model_args=small)
        return FrozenTowers(TwoTower(image, tower, 4))

    def tokenize(self, texts, length):
        return Reversed()(texts, length)[0]


def test_a_teacher_reads_a_text_of_its_own(student):
    own = {"theirs": Text(tokenizer=Reversed(), context_length=12)}
    load_teachers(student("teacher.x.text.theirs", teachers={"x": Other()}, texts=own))
    with pytest.raises(ValueError, match=r"ids of another tokenizer than this teacher's: add data"):
        load_teachers(student("teacher.x.text", teachers={"x": Other()}))
    longer = {"theirs": Text(tokenizer=Reversed(), context_length=13)}
    with pytest.raises(ValueError, match="texts of 13 tokens, and this teacher takes 12"):
        load_teachers(student("teacher.x.text.theirs", teachers={"x": Other()}, texts=longer))


class WithoutScale(Other):
    """A teacher of another library whose model has no `logit_scale`."""

    def build(self, load):
        towers = super().build(load)
        towers.model.logit_scale.fill_(torch.nan)
        return towers


@pytest.mark.parametrize("scalar", ["logit_scale", "logit_bias"])
def test_a_scale_or_bias_that_a_teacher_does_not_have_is_refused(student, scalar):
    load_teachers(student("teacher.x.image", teachers={"x": WithoutScale()}))
    needs = ("teacher.x.image", f"teacher.x.{scalar}")
    with pytest.raises(ValueError, match=rf"'teacher\.x\.{scalar}', and this teacher has none"):
        load_teachers(student(*needs, teachers={"x": WithoutScale()}))


def test_the_student_reads_no_text_of_a_teacher(student):
    parts = student(texts={"theirs": Text(tokenizer=Reversed())})
    parts.objective = Objective({"fd": FeatureRegression("text.theirs", "text")})
    with pytest.raises(ValueError, match=r"needs 'text.theirs' of the student, but data.texts"):
        load_teachers(parts)


@pytest.mark.parametrize("need", ["text.long.raw", "ema.text.long"])
def test_the_student_reads_no_text_longer_than_it_takes(student, need):
    def attached(context_length):
        texts = {"long": Text(context_length=context_length)}
        parts = student(texts=texts, ema=EmaConfig(0.9))
        parts.objective = Objective({"fd": FeatureRegression("image.raw", need)})
        load_teachers(parts)

    attached(8)
    with pytest.raises(
        ValueError, match=rf"needs '{need}' .* of 8 tokens, and data.texts.long .* 9"
    ):
        attached(9)


class Named(Reversed):
    """Stands for a tokenizer of a folder that only the documentation has."""

    def __init__(self, name: str):
        super().__init__()


def test_what_the_documentation_shows(monkeypatch):
    monkeypatch.chdir(ROOT / "configs" / "run")  # where the files that it names start
    monkeypatch.setattr(tokenize, "HFTokenizer", Named)
    text = (ROOT / "docs" / "teachers.md").read_text()
    for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        chosen = yaml.safe_load(block)
        argv = ["--config", "emoji_clip.yaml"]
        for key, value in chosen.items():
            argv += [f"--{key}", value if isinstance(value, str) else yaml.safe_dump(value)]
        parser = run_config.make_parser()
        parts = parser.instantiate(run_config.parse(parser, argv))
        assert (parts.ema is None) == ("ema" not in chosen)
        if "objective" not in chosen:
            continue
        names = {f"teacher.{name}" for name in chosen.get("teachers", ())} or {"ema"}
        views = {"image", "text", "image.strong_1", "image.strong_2"}
        check_needs(parts.objective.needs, names, views, ())
        with pytest.raises(ValueError, match="which the run does not have"):
            check_needs(parts.objective.needs, (), views, ())


def test_scores_need_views_of_the_same_image_whose_place_is_known(student):
    crop = TrainTransform()
    views = {"whole": View(EnclosingCrop(("image",)), 8), "other": View(crop)}
    second = InfoNCE(views=("image.other", "text"))

    def attached(ema=True, **changes):
        parts = student(ema=EmaConfig(0.9) if ema else None, views=views | changes)
        parts.phases.named["train"].image_reducer = AttentivePatches(cell=1)
        parts.objective = Objective({"infonce": InfoNCE(), "second": second})
        load_teachers(parts)

    attached()
    with pytest.raises(ValueError, match=r"phases\.train\.image_reducer .* ema: \{decay: 0.996\}"):
        attached(ema=False)
    for view in (View(EvalTransform()), View(crop, member="negative")):
        with pytest.raises(
            ValueError, match=r"where 'image\.other' lies .*'image', 'image\.whole'"
        ):
            attached(other=view)
