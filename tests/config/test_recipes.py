"""Recipes are settings that `fastcnn.train` takes, with their source and how they are run."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

from fastcnn import models
from fastcnn.cli.main import main
from fastcnn.config import FIELDS, Config, flag, recipes, to_yaml
from fastcnn.config.parse import from_settings, parse
from fastcnn.config.recipes import IMAGENET, RECIPES, as_flags, from_recipe
from fastcnn.config.validate import check, ineffective
from fastcnn.errors import UserError
from networks import each
from small_facts import resolved


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_settings_that_are_possible_and_all_have_an_effect(name):
    config = from_recipe(name)
    check(config)
    assert ineffective(config) == []
    assert config.recipe == name


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_changes_what_it_sets(name):
    settings = RECIPES[name].settings
    told = {n for n, value in settings.items() if value != FIELDS[n].default or n in ("arch", "sched")}
    assert set(settings) - told <= {"lr_base_size", "decay_epochs"}  # said for the reader


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_at_its_source_s_learning_rate(name):
    recipe = RECIPES[name]
    settings = recipe.settings
    config = resolved(from_recipe(name), world_size=recipe.processes)
    if "lr_base" in settings:
        images = settings["batch_size"] * recipe.processes
        assert config.lr == pytest.approx(settings["lr_base"] * images / settings["lr_base_size"])
    elif "lr" in settings:
        assert config.lr == settings["lr"]


def test_colours_are_not_jittered_beside_timm_s_randaugment():  # timm's transforms leave the jitter out there
    settings = [recipe.settings for recipe in RECIPES.values()]
    of_timm = [each for each in settings if str(each.get("aa")).startswith("rand-")]
    assert len(of_timm) == 2
    assert not any("color_jitter" in each for each in of_timm)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_network_exists(name):
    models.constructor(RECIPES[name].settings["arch"])


@pytest.mark.parametrize("name", each(RECIPES, list(RECIPES)[::4]))
def test_its_command_and_its_settings_as_flags_say_the_same(name):
    recipe = RECIPES[name]
    words = shlex.split(recipe.command(name))
    of_command = parse(words[words.index("fastcnn.train") + 1 :])
    of_flags = parse(shlex.split(as_flags(recipe)))
    data = {"data": of_command.data, "recipe": name}
    for n in FIELDS:
        ours, theirs = getattr(of_command, n), getattr(replace(of_flags, **data), n)
        assert ours == theirs or ours == pytest.approx(theirs, rel=1e-5)


def test_flags_override_a_file_and_a_file_overrides_a_recipe(tmp_path):
    (tmp_path / "mine.yaml").write_text("epochs: 3\nlr_base: 0.5\n")
    path = str(tmp_path / "mine.yaml")
    config = parse(["--recipe", "imagenet-resnet50-16", "--config", path, "--lr-base", "2"])
    assert (config.epochs, config.lr_base, config.arch) == (3, 2, "resnet50_blur")


def test_a_file_may_name_a_recipe(tmp_path):
    (tmp_path / "mine.yaml").write_text("recipe: cifar10-resnet20\nepochs: 3\n")
    config = parse(["--config", str(tmp_path / "mine.yaml")])
    assert (config.arch, config.epochs, config.lr) == ("resnet20", 3, 0.1)


def test_the_settings_of_a_run_by_a_recipe_read_back_as_they_were(tmp_path):
    config = parse(["--recipe", "cifar10-resnet20", "--epochs", "3", "--arch", "resnet56"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    path = str(tmp_path / "config.yaml")
    assert parse(["--config", path]) == replace(config, config=path)


def test_python_takes_a_recipe_too():
    config = from_settings({"recipe": "cifar10-resnet20", "epochs": 3})
    assert (config.arch, config.epochs) == ("resnet20", 3)


def test_an_unknown_recipe_names_the_nearest(wording):
    with pytest.raises(UserError, match="^--recipe cifar10-resnet2: .* cifar10-resnet20") as caught:
        parse(["--recipe", "cifar10-resnet2"])
    wording(caught.value)
    with pytest.raises(UserError, match="^--recipe xyz: ") as caught:
        parse(["--recipe", "xyz"])
    wording(caught.value)


def test_the_command_lists_each_with_its_source_and_how_to_run_it(capsys):
    assert main(["recipes"]) == 0
    text = capsys.readouterr().out
    for name, recipe in RECIPES.items():
        assert recipe.published in text
        assert recipe.source in text
        assert recipe.command(name) in text


def test_a_setting_is_written_as_its_flag():
    recipe = recipes.Recipe(
        settings={"progressive": (160, 192), "model_ema": True, "lr": 0.5}, data="", source="", published=""
    )
    assert as_flags(recipe) == "--progressive 160 192 --model-ema --lr 0.5"
    assert flag("model_ema") in as_flags(recipe)
    assert Config().recipe is None


def test_recipes_of_imagenet_read_its_photos_as_torchvision_does():
    of_imagenet = [recipe for recipe in RECIPES.values() if recipe.data == IMAGENET]
    assert len(of_imagenet) > 10
    assert all(recipe.settings["exif"] == "ignore" for recipe in of_imagenet)
    assert all("exif" not in recipe.settings for recipe in RECIPES.values() if recipe.data != IMAGENET)
