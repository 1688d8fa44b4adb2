"""The model card of an export: data, recipe, results, use, licence, equality, versions.

In: a run and what an export measured. Out: Markdown with metadata as the Hugging Face hub reads it.
What a run's folder does not hold is left out: only its configuration and checkpoint must be there.
"""

import json
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from ...train.evaluation.outcomes import FILE as OUTCOMES
from ...train.evaluation.outcomes import Stored, read_outcomes
from ..reporting.page import TEMPLATES
from ..reporting.runs import Run, is_evaluation, read_run, show
from ..run.facts import parameters
from .parity import NUM_IMAGES, TEXTS, Parity
from .source import Source
from .target import Target

Rows = list[tuple[str, str]]


def render(
    source: Source,
    target: Target,
    path: str,
    parity: Parity,
    notes: Sequence[str],
    facts: Rows,
    licence: str,
) -> str:
    """Returns the card.

    Args:
        source: the run.
        target: what it was exported to.
        path: where to, as the user wrote it.
        parity: largest differences from the run.
        notes: what the target does not hold.
        facts: what the target measured besides.
        licence: of the weights, an SPDX identifier; "": not stated.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    run = _read(source)
    results, note = list(_results(source, run)), _results_note(source, run)
    return environment.get_template("model_card.md").render(
        metadata=_metadata(target, licence),
        title=source.name,
        command=_command(source, target, path),
        embed_dim=source.embed_dim,
        model=_model(source),
        notes=notes,
        install=" ".join(target.needs),
        program=target.program(source, path).rstrip(),
        data=_data(source, run),
        recipe=_recipe(source, run),
        phases=_phases(source),
        results=results,
        results_note=note,
        parity=parity,
        num_images=NUM_IMAGES,
        num_texts=len(TEXTS),
        facts=facts,
        licence=licence or "Not stated: ask whoever trained it. (`counterpoint export --license`.)",
        versions=_versions(target),
    )


def _metadata(target: Target, licence: str) -> dict[str, Any]:
    about: dict[str, Any] = {"license": licence} if licence else {}
    return about | {
        "library_name": target.library,
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["clip", "counterpoint", "image-feature-extraction", "sentence-similarity"],
    }


def _command(source: Source, target: Target, path: str) -> str:
    words = ["counterpoint export", source.folder.name, Path(path).name, "--to", target.name]
    words += ["--checkpoint", str(source.step)]
    return " ".join(words + ["--weights ema"] * (source.weights == "ema"))


def _model(source: Source) -> Rows:
    model, counts = source.model, parameters(source.model)
    image, text = (_class(source.run.config["model"][side]) for side in ("image", "text"))
    scale = f"{float(model.logit_scale.exp()):.4g}"
    if model.logit_bias is not None:
        scale += f", bias {float(model.logit_bias):.4g}"
    transform = source.run.eval_transform
    how = ", ".join(f"{k} {v}" for k, v in vars(transform).items() if not k.startswith("_"))
    return [
        ("Image tower", f"{image}, {counts['image']:,} parameters"),
        ("Text tower", f"{text}, {counts['text']:,} parameters"),
        ("Embedding", f"{source.embed_dim} numbers"),
        ("Images", f"{model.image_size} x {model.image_size} pixels ({how})"),
        ("Texts", f"up to {model.context_length} tokens of {_tokenizer(source)}"),
        ("Logit scale", scale),
        ("Weights", f"{_weights(source)} of step {source.step:,}"),
    ]


def _weights(source: Source) -> str:
    return "moving average" if source.weights == "ema" else "trained weights"


def _tokenizer(source: Source) -> str:
    tokenizer = source.run.tokenizer
    return f"{type(tokenizer).__name__} ({tokenizer.vocab_size:,} in its vocabulary)"


def _class(value: Any) -> str:
    """Returns a class and its main argument: `TimmTower vit_base_patch16_clip_224`."""
    if not isinstance(value, dict) or "class_path" not in value:
        return str(value)
    arguments = value.get("init_args") or {}
    name = arguments.get("name") or ", ".join(
        f"{key} {arguments[key]}" for key in ("width", "depth", "num_heads") if key in arguments
    )
    return f"{value['class_path'].rpartition('.')[2]} {name}".strip()


def _data(source: Source, run: Run) -> Rows:
    data = source.run.config.get("data") or {}
    rows = [("Pairs", f"`{Path(str(data['manifest'])).name}`")] if data.get("manifest") else []
    for name, each in (data.get("sources") or {}).items():
        share = each.get("share") if isinstance(each, dict) else None
        rows.append((f"Source {name}", "by its size" if share is None else f"share {share:g}"))
    if size := run.facts.get("epoch_size"):
        rows.append(("Pairs in it", f"{size:,}"))
    if data.get("keep_lists"):
        lists = ", ".join(f"`{Path(str(each)).name}`" for each in data["keep_lists"])
        rows.append(("Keep-lists", lists))
    seen = _seen(source, run)
    if seen is not None:
        rows.append(("Pairs seen", f"{seen:,}" + (f" ({seen / size:.3g} epochs)" if size else "")))
    caption, transform = data.get("caption"), data.get("train_transform")
    if caption:
        texts = caption if isinstance(caption, list) else [_class(caption)]
        rows.append(("Captions", ", ".join(f"`{text}`" for text in texts)))
    rows.append(("Training images", _arguments(transform) if transform else "TrainTransform"))
    return rows


def _seen(source: Source, run: Run) -> int | None:
    """Returns the pairs that the checkpoint had seen, as far as the run logged them."""
    if run.summary.get("steps") == source.step:
        return run.num_samples
    samples = run.samples_at(np.array([source.step]))
    return None if samples is None else round(float(samples[0]))


def _arguments(value: Any) -> str:
    """Returns a class with all arguments that are not plain zeros."""
    arguments = (value.get("init_args") or {}) if isinstance(value, dict) else {}
    chosen = ", ".join(f"{key} {each}" for key, each in arguments.items() if each)
    return f"{_class({'class_path': value['class_path']})} {chosen}".strip()


def _recipe(source: Source, run: Run) -> Rows:
    config = source.run.config
    weights = config["objective"].get("weights") or {}
    terms = [
        _class({"class_path": term["class_path"]})
        + (f" x {weights[name]}" if isinstance(weights.get(name), int | float) else "")
        for name, term in config["objective"]["terms"].items()
    ]
    rows = [("Objective", " + ".join(terms))]
    for title, slot in (("Optimizer", "optim"), ("Gradient clipping", "grad_clip")):
        value = config.get(slot)
        if isinstance(value, dict) and value.get("class_path"):
            plain = {
                key: each
                for key, each in (value.get("init_args") or {}).items()
                if isinstance(each, int | float | list)
            }
            rows.append((title, _arguments({**value, "init_args": plain})))
    if config.get("teachers"):
        rows.append(("Teachers", ", ".join(config["teachers"])))
    if config.get("init_from"):
        rows.append(("Started from", f"`{Path(str(config['init_from'])).name}`"))
    rows.append(("Seed", str(config.get("seed", "-"))))
    facts = run.facts
    if facts.get("precision"):
        rows.append(("Precision", str(facts["precision"])))
    if machine := facts.get("machine"):
        kinds = ", ".join(dict.fromkeys(machine.get("accelerators") or [])) or machine.get("cpu")
        rows.append(("Devices", f"{facts.get('world_size', 1)} x {kinds}"))
    if revision := (facts.get("code") or {}).get("revision"):
        dirty = ", changed" if facts["code"].get("dirty") else ""
        rows.append(("Code", f"Counterpoint {revision[:12]}{dirty}"))
    return rows


def _phases(source: Source) -> list[list[str]]:
    rows = []
    for name, phase in source.run.config["phases"].items():
        numbers = [f"{phase.get(key) or 0:,}" for key in ("samples", "batch_size")]
        rate, warmup = phase.get("learning_rate"), phase.get("warmup_samples") or 0
        schedule = str(phase.get("schedule", "cosine"))
        rows.append([name, *numbers, f"{rate:g}", f"{warmup:,}", schedule])
    return rows


def _read(source: Source) -> Run:
    """Reads what the run logged, if it is there."""
    if (source.folder / "metrics.jsonl").is_file():
        return read_run(source.folder)
    return Run(source.name, source.folder, source.run.config, [], {})


def _results(source: Source, run: Run) -> Iterator[list[str]]:
    """Yields measure, value, interval and number of items of what evaluated these weights."""
    if source.weights != "trained":
        return
    values: dict[str, float] = {}
    if run.summary.get("steps") == source.step:
        values |= {n: v for n, v in run.summary.get("final", {}).items() if is_evaluation(n)}
    intervals: dict[str, Any] = {}
    for file in sorted((source.folder / "evaluation").glob("*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        if record.get("step") == source.step:
            values |= record.get("metrics") or {}
            intervals |= record.get("intervals") or {}
    outcomes = {}
    if run.summary.get("steps") == source.step and (source.folder / OUTCOMES).is_file():
        outcomes = read_outcomes(source.folder / OUTCOMES)
    for name, value in values.items():
        interval, count = intervals.get(name), ""
        if name in outcomes:
            count = f"{len(outcomes[name].values):,}"
            interval = interval or normal_interval(outcomes[name])
        shown = "-" if not interval else " to ".join(show(name, x) for x in interval[:2])
        yield [f"`{name}`", show(name, value), shown, count]


def _results_note(source: Source, run: Run) -> str:
    if source.weights != "trained":
        return "The moving average was not evaluated in the run's folder."
    if not any(_results(source, run)):
        return "The run's folder has none of this step; `counterpoint evaluate` writes some."
    return "Intervals are over test items alone: another seed may differ by more."


def normal_interval(outcomes: Stored) -> tuple[float, float]:
    """Returns the 95% interval of a weighted mean of items, in the normal approximation."""
    weights = outcomes.weights / outcomes.weights.sum()
    mean = float(weights @ outcomes.values)
    variance = float(weights**2 @ (outcomes.values - mean) ** 2)
    margin = 1.96 * variance**0.5
    return max(0.0, mean - margin), min(1.0, mean + margin)


def _versions(target: Target) -> str:
    names = [
        "counterpoint",
        "torch",
        "timm",
        "transformers",
        *target.packages.values(),
        *target.needs,
    ]
    installed = {}
    for name in dict.fromkeys(names):
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return ", ".join(f"{name} {number}" for name, number in installed.items())
