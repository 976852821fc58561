"""Presets, a TOML file and `--set` merge in this order; every mistake is one sentence that names key, place and nearest name."""

from __future__ import annotations

import pytest

from dagman.errors import SettingsError
from dagman.settings import Settings, list_presets, load_settings, resolve_settings
from dagman.settings.presets import list_fields, validate_settings


def _load(*assignments: str, **options):
    return load_settings(**options, assignments=assignments)[0]


def _refusal(*assignments: str, **options) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(**options, assignments=assignments)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("size", list_presets("sizes"))
@pytest.mark.parametrize("method", list_presets("methods"))
def test_every_preset_loads_and_resolves_to_settings_without_auto(size, method):
    settings, given = load_settings(size, method)
    assert (settings.size, settings.method) == (size, method)
    assert given == {"size", "method"}
    resolved, _ = resolve_settings(settings)
    values = resolved.model_dump()
    left = [key for key in list_fields() if _look_up(values, key) == "auto"]
    # What the store and the machine decide stays open until there is one.
    machine = ["skip_hidden", "precision", "kernels", "compile", "read_after", "device", "workers"]
    assert left == ["view.modality", *(f"train.{name}" for name in machine)]
    assert resolve_settings(resolved) == (resolved, [])


def _look_up(values, key):
    for part in key.split("."):
        values = values[part]
    return values


def test_the_paper_preset_has_the_papers_values():
    settings, _ = resolve_settings(load_settings("paper")[0])
    assert settings.view.side == 128
    assert (settings.model.embed, settings.model.depths, settings.model.heads) == (48, (2, 2, 8, 2), (4, 4, 8, 16))
    assert (settings.masking.ratio, settings.masking.hints, settings.teacher.noise) == (0.7, 0.1, 0.7)
    losses = settings.losses
    assert (losses.amip, losses.ampd, losses.aitd, losses.gitd, losses.student_temperature) == (1, 0.1, 0.1, 0.1, 0.1)
    assert (settings.optim.lr, settings.optim.min_lr, settings.optim.weight_decay, settings.optim.clip) == (8e-4, 1e-6, 0.05, 3.0)
    assert (settings.projector.prototypes, settings.projector.hidden, settings.projector.bottleneck) == (8192, 2048, 256)
    assert (settings.teacher.temperature_start, settings.teacher.temperature_end) == (0.04, 0.07)
    assert settings.train.recipe == "paper"


def test_an_assignment_wins_over_the_file_and_the_file_over_the_presets(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('method = "smit"\n[train]\nsteps = 7\nbatch = 8\n')
    settings, given = load_settings(config=path, assignments=["train.steps=9"])
    assert settings.method == "smit"
    assert not settings.model.semantic_attention
    assert (settings.train.steps, settings.train.batch) == (9, 8)
    assert given == {"method", "train.steps", "train.batch"}
    assert load_settings(config=path, method="ibot")[0].method == "ibot"


@pytest.mark.parametrize(
    ("assignment", "section", "key", "value"),
    [
        ("train.steps=12", "train", "steps", 12),
        ("train.steps=1e3", "train", "steps", 1000),
        ("optim.lr=0.001", "optim", "lr", 0.001),
        ("optim.lr = .5", "optim", "lr", 0.5),
        ("optim.lr=auto", "optim", "lr", "auto"),
        ("masking.kind=random", "masking", "kind", "random"),
        ('masking.kind="block"', "masking", "kind", "block"),
        ("losses.symmetric=false", "losses", "symmetric", False),
        ("losses.symmetric=False", "losses", "symmetric", False),
        ("model.depths=[1, 1, 1, 1]", "model", "depths", (1, 1, 1, 1)),
        ("train.device=cuda:1", "train", "device", "cuda:1"),
        ("train.workers=0", "train", "workers", 0),
    ],
)
def test_an_assignment_takes_the_type_of_its_key(assignment, section, key, value):
    found = getattr(getattr(_load(assignment), section), key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("assignment", "text"),
    [
        ("train.steps", "--set 'train.steps' is not an assignment. Write --set key=value, such as --set train.steps=300."),
        ("=3", "--set '=3' is not an assignment"),
        ("train.steps=many", "train.steps = 'many': should be a whole number."),
        ("train.steps=0", "train.steps = 0: should be 1 or more"),
        ("masking.ratio=1.5", "masking.ratio = 1.5: should be 1 or less"),
        ("view.side=48", "view.side = 48: should be a multiple of 32"),
        ("train.batch=3", "train.batch = 3: should be a multiple of 2"),
        ("optim.lr=nan", "optim.lr = nan: should be a finite number"),
        ("optim.beta2=1", "optim.beta2 = 1: should be below 1"),
        ("optim.lr=1e-7", "optim: min_lr (1e-06) must not exceed lr (1e-07)"),
        ("model.depths=2", "model.depths = 2: should be a list of 4 values, such as [2, 2, 8, 2]."),
        ("model.depths=[2, 2]", "model.depths = [2, 2]: should be a list of 4 values, such as [2, 2, 8, 2]."),
        ("model.heads=[1, 2, 2, 4, 8]", "model.heads = [1, 2, 2, 4, 8]: should be a list of 4 values"),
        ("optim.lr=fast", "optim.lr = 'fast': should be a number or 'auto'"),
        ("masking.kind=blocks", "masking.kind = 'blocks': should be 'attention-high', 'attention-low', 'random' or 'block'"),
        (
            "masking.kind=randm",
            "masking.kind = 'randm': should be 'attention-high', 'attention-low', 'random' or 'block'. Nearest: random.",
        ),
        ("masking.kind=3", "masking.kind = 3: should be 'attention-high', 'attention-low', 'random' or 'block'."),
        ("model.depths=[1, 1]", "model.depths"),
        ("train.stepz=3", "train.stepz: unknown key. Nearest: train.steps."),
        ("maskin.ratio=0.5", "maskin: unknown key. Nearest: masking."),
        ("ratio=0.5", "ratio: unknown key. Nearest: masking.ratio."),
        ("train=3", "train: is a section, not a value. Set one of its keys, such as train.recipe."),
        ("train.steps.more=3", "train.steps"),
        ("seed.more=3", "seed"),
    ],
)
def test_a_wrong_assignment_is_one_sentence(assignment, text):
    assert _refusal(assignment).startswith(text)


def test_a_section_cannot_be_set_below_a_value():
    assert _refusal("train=3", "train.steps=4") == "train.steps: train is a value, not a section."


@pytest.mark.parametrize(("key", "one", "other"), [("size", "tiny", "small"), ("method", "dagman", "smit")])
def test_a_preset_given_twice_is_refused_unless_both_are_one(key, one, other):
    wanted = f"{key} is given twice, as {one!r} and by --set as {other!r}. Remove --set {key}={other}, or --{key}."
    assert _refusal(f"{key}={other}", **{key: one}) == wanted
    settings, keys = load_settings(**{key: one}, assignments=[f"{key}={one}"])
    assert getattr(settings, key) == one
    assert keys == {key}


def test_misspelt_presets_name_the_nearest_or_all():
    assert _refusal(size="smal") == "unknown size preset 'smal'. Nearest: small."
    assert _refusal(method="dagman-clean") == "unknown method preset 'dagman-clean'. Nearest: dagman-clean-teacher."
    text = _refusal(method="zzz")
    assert all(name in text for name in list_presets("methods"))


def test_a_mistake_in_a_file_names_the_file_and_the_line_in_its_own_section(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("[view]\nnoise = 0.1\n\n[teacher]  # dimmed\nnoise = 7\n[train]\nstepz = 3\n")
    text = _refusal(config=path)
    assert text.startswith(f"{path}: ")
    assert "teacher.noise = 7 (line 5): should be 1 or less" in text
    assert "train.stepz: unknown key (line 7). Nearest: train.steps" in text


def test_an_unknown_section_of_a_file_is_found_by_its_heading(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("seed = 3\n[optimiser]\nlr = 1\n")
    assert _refusal(config=path) == f"{path}: optimiser: unknown key (line 2). Nearest: optim."


def test_a_mistake_in_an_assignment_does_not_blame_the_file(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("[train]\nsteps = 3\n")
    assert _refusal("masking.ratio=7", config=path).startswith("masking.ratio = 7: ")


@pytest.mark.parametrize(
    ("content", "text"), [(b"steps = = 3", "is not TOML"), (b"\xff\xfe", "is not TOML"), (None, "No such file")]
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, content, text):
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_bytes(content)
    refusal = _refusal(config=path)
    assert str(path) in refusal
    assert text in refusal
    assert "Is a directory" in _refusal(config=tmp_path)


@pytest.mark.parametrize(
    ("assignments", "text"),
    [
        (["view.low=500"], "view: low (500 HU) must lie below high (500 HU)"),
        (["model.heads=[5, 4, 4, 8]"], "model: heads[0] = 5 must divide the 24 channels of stage 1"),
        (["model.sa_heads=7"], "model: sa_heads = 7 must divide the 192 channels of x3"),
        (["masking.hints=0.7"], "masking: hints (0.7) must be below ratio (0.7)"),
        (["masking.hint_pool=0.05"], "masking: hint_pool (0.05) must lie between hints (0.1) and ratio (0.7)"),
        (["masking.hint_pool=0.8"], "masking: hint_pool (0.8) must lie between"),
        (["losses.amip=0", "losses.ampd=0", "losses.aitd=0", "losses.gitd=0"], "losses: all weights are 0"),
        (["model.semantic_attention=false"], 'masking.kind = "attention-high" needs model.semantic_attention = true'),
        (["model.semantic_attention=false", "masking.kind=random"], "losses.aitd needs model.semantic_attention = true"),
        (["train.micro_batch=8", "train.batch=6"], "train.micro_batch = 8 is larger than train.batch = 6"),
        (
            ["view.side=32", "masking.ratio=0.12", "masking.hints=0.05"],
            "masking.ratio = 0.12 hides none of the 8 units of view.side = 32",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused_before_anything_starts(assignments, text):
    assert _refusal(*assignments).startswith(text)


def test_settings_are_frozen_and_their_sections_closed():
    with pytest.raises(ValueError, match="frozen"):
        Settings().train.steps = 3
    with pytest.raises(SettingsError, match=r"train\.stpes"):
        validate_settings({"train": {"stpes": 3}})
