"""Teachers of a run file: whose weights they hold, and what is refused before training."""

import copy
import re
from pathlib import Path

import pytest
import safetensors.torch
import tiny
import torch
import yaml

from counterpoint.data.index import index_shards
from counterpoint.launch import config as run_config
from counterpoint.launch.build import build
from counterpoint.launch.fit import initialise
from counterpoint.launch.providers import attach
from counterpoint.train.providers import check_needs

ROOT = Path(__file__).resolve().parents[2]
FROZEN = "counterpoint.models.teacher.Frozen"
REGRESSION = "counterpoint.losses.regression.Regression"


@pytest.fixture
def student(tmp_path):
    """Builds the tiny run with changes; returns (module, parts)."""
    index_shards([str(p) for p in tiny.write_shards(tmp_path / "pairs")], str(tmp_path / "m"))

    def call(**changes):
        values = tiny.config(tmp_path / "m") | changes
        for need in values.pop("needs", ["teacher.x.image", "teacher.x.text"]):
            feature = "text" if "text" in need else "image"
            arguments = {"feature": feature, "target": need}
            term = {"class_path": REGRESSION, "init_args": arguments}
            values["objective"]["terms"][need.replace(".", "_")] = term
        parser = run_config.make_parser()
        config = run_config.parse(
            parser, ["--config", str(tiny.write_config(tmp_path, values)), "--run_dir", "unused"]
        )
        module, parts = build(parser, config)
        module.resolved_config = run_config.plain(parser, config)
        return module, parts

    return call


def teacher(source=None, **arguments):
    return {"x": {"class_path": FROZEN, "init_args": {"source": source, **arguments}}}


@pytest.fixture
def other_run(tmp_path):
    """A run folder of a wider model with two checkpoints; returns it and the second's weights."""
    folder = tmp_path / "other"
    (folder / "checkpoints").mkdir(parents=True)
    values = tiny.config(tmp_path / "gone") | {"seed": 5}
    values["model"]["text"]["init_args"]["width"] = 24
    parser = run_config.make_parser()
    path = tiny.write_config(folder, values)
    config = run_config.parse(parser, ["--config", str(path)])
    run_config.save(run_config.plain(parser, config), folder / "config.yaml")
    module, _ = build(parser, config)
    for step in (1, 2):
        with torch.no_grad():
            module.model.image_projection.weight.add_(step)
        state = {f"model.{n}": v.clone() for n, v in module.model.state_dict().items()}
        torch.save({"state_dict": state}, folder / "checkpoints" / f"step-{step:08d}.ckpt")
    return folder, copy.deepcopy(module.model).eval()


def batch():
    g = torch.Generator().manual_seed(0)
    return {
        "image": torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=g),
        "text": torch.randint(1, 40000, (4, 8), generator=g),
        "text_length": torch.tensor([3, 8, 4, 5]),
    }


@pytest.mark.parametrize("which", ["folder", "checkpoint"])
def test_a_run_is_loaded_with_its_own_architecture(student, other_run, which):
    folder, want = other_run
    source = folder if which == "folder" else folder / "checkpoints" / "step-00000001.ckpt"
    module, parts = student(teachers=teacher(str(source)))
    before = torch.get_rng_state()
    attach(module, parts)
    assert torch.equal(torch.get_rng_state(), before)
    if which == "checkpoint":
        with torch.no_grad():
            want.image_projection.weight.sub_(2)
    got = module.providers["teacher.x"](batch(), ("image", "text"))
    for name, value in want(batch(), ("image", "text")).items():
        torch.testing.assert_close(got[name], value.detach())
    # Outside the state, the optimiser, and what is synchronised or trained.
    assert not any("teacher" in name or "providers" in name for name in module.state_dict())
    frozen = {id(p) for p in module.providers["teacher.x"].parameters()}
    assert frozen and not frozen & {id(p) for p in module.parameters()}


def test_a_file_holds_weights_of_the_own_architecture(student, tmp_path):
    model, _ = student(seed=3, needs=[])
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(model.model.state_dict(), path)
    module, parts = student(teachers=teacher(str(path), precision="bfloat16"))
    attach(module, parts)
    towers = module.providers["teacher.x"].model
    assert towers.logit_scale.dtype == torch.bfloat16
    want = model.model.text_projection.weight.detach().bfloat16()
    assert torch.equal(towers.text_projection.weight, want)

    state = {n: v for n, v in model.model.state_dict().items() if n != "logit_scale"}
    safetensors.torch.save_file(state, path)
    with pytest.raises(ValueError, match=r"1 missing \(logit_scale\)\); name the folder"):
        attach(*student(teachers=teacher(str(path))))


def test_without_a_source_it_is_what_the_run_starts_from(student, other_run, tmp_path):
    # Another width of the text tower: what does not match stays as the seed made it.
    init = str(other_run[0])
    module, parts = student(teachers=teacher(), init_from=init)
    initialise(module.model, init)
    attach(module, parts)
    resumed, its_parts = student(teachers=teacher(), init_from=init)
    attach(resumed, its_parts)  # a resumed run loads its weights later
    start = module.model.state_dict()
    for made in (module, resumed):
        state = made.providers["teacher.x"].model.state_dict()
        assert all(torch.equal(state[name], start[name]) for name in start)
    with pytest.raises(ValueError, match="name its weights with init_from"):
        attach(*student(teachers=teacher()))


def test_the_average_starts_as_the_student_and_is_in_the_state(student):
    module, parts = student(ema={"decay": 0.9}, needs=["ema.image"])
    attach(module, parts)
    state = module.state_dict()
    names = module.model.state_dict().keys()
    assert all(torch.equal(state[f"ema.model.{n}"], state[f"model.{n}"]) for n in names)
    groups = module.optim.build(module.model, module.objective).param_groups
    trained = {id(p) for group in groups for p in group["params"]}
    assert not trained & {id(p) for p in module.ema.parameters()}


VIEW = {"transform": {"class_path": "EvalTransform"}, "size": 20}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "'teacher.x.image', which nobody provides: configure teachers: {x: "),
        ({"needs": ["ema.image"]}, "give the run an average of the student"),
        ({"needs": [], "teachers": teacher("a")}, "no term needs the teacher 'x'"),
        ({"teachers": {"image": teacher()["x"]}}, "the teacher 'image' needs another name"),
        ({"teachers": teacher("nowhere.safetensors")}, "no weights file nowhere.safetensors"),
    ],
)
def test_what_cannot_work_is_refused(student, changes, words):
    with pytest.raises(ValueError) as caught:
        attach(*student(**changes))
    assert words in str(caught.value)


def test_inputs_must_fit_the_teacher(student, other_run):
    folder = other_run[0]
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    values = student(needs=[])[0].resolved_config
    data = values["data"] | {"views": {"big": VIEW}}
    with pytest.raises(ValueError, match=r"get pictures of 20 pixels, and this teacher takes 16"):
        attach(
            *student(teachers=teacher(str(folder)), data=data, needs=["teacher.x.image.big.raw"])
        )
    saved["model"]["text"]["init_args"]["context_length"] = 6
    run_config.save(saved, folder / "config.yaml")
    for path in (folder / "checkpoints").iterdir():
        state = torch.load(path, weights_only=True)
        name = next(n for n in state["state_dict"] if n.endswith("position_embedding.weight"))
        state["state_dict"][name] = state["state_dict"][name][:6]
        torch.save(state, path)
    with pytest.raises(ValueError, match="get texts of 8 tokens, and this teacher takes 6"):
        attach(*student(teachers=teacher(str(folder))))


def test_texts_must_be_those_of_the_teachers_tokenizer(student, other_run):
    folder = other_run[0]
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    saved["data"]["tokenizer"] = {"class_path": "reversed_words.Reversed"}
    run_config.save(saved, folder / "config.yaml")
    with pytest.raises(ValueError, match="trained with another tokenizer"):
        attach(*student(teachers=teacher(str(folder))))
    attach(*student(teachers=teacher(str(folder)), needs=["teacher.x.image"]))


def test_what_the_documentation_shows(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / "teachers.md").read_text()
    for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        chosen = yaml.safe_load(block)
        argv = ["--config", "configs/run/emoji_clip.yaml"]
        for key, value in chosen.items():
            argv += [f"--{key}", value if isinstance(value, str) else yaml.safe_dump(value)]
        parser = run_config.make_parser()
        parts = parser.instantiate(run_config.parse(parser, argv))
        assert (parts.ema is None) == ("ema" not in chosen)
        names = {f"teacher.{name}" for name in chosen.get("teachers", ())} or {"ema"}
        views = {"image", "text", "image.strong_1", "image.strong_2"}
        check_needs(parts.objective.needs, names, views, ())
        with pytest.raises(ValueError, match="which nobody provides"):
            check_needs(parts.objective.needs, (), views, ())
