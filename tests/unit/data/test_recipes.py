import pytest
from pydantic import ValidationError

from ssdistill.data.recipes import RECIPES, ViewRecipe, expand, resolve_recipe
from ssdistill.train.settings import TrainSettings


def written(views):
    """What a config's list of views comes to."""
    return TrainSettings(steps=1, views=views).views


def test_small_crops_are_asked_for_by_name_size_and_count():
    full, small = written(["weak", {"recipe": "multicrop_small", "size": 16, "count": 6}])
    assert full == RECIPES["weak"]
    assert small == RECIPES["multicrop_small"].model_copy(update={"size": 16, "count": 6})


def test_a_changed_recipe_keeps_what_it_does_not_change():
    (changed,) = written([{"recipe": "byol_b", "scale": (0.3, 0.9)}])
    assert changed.model_dump() == RECIPES["byol_b"].model_dump() | {"scale": (0.3, 0.9)}


def test_settings_without_a_recipe_start_from_the_defaults():
    assert written([{"flip": 0.0, "size": 20}]) == (ViewRecipe(flip=0.0, size=20),)


def test_a_dumped_recipe_is_read_back_the_same():
    recipes = written(["simclr", {"recipe": "multicrop_small", "size": 16, "count": 6}])
    assert written([recipe.model_dump(mode="json") for recipe in recipes]) == recipes


@pytest.mark.parametrize("entry", ["byol_c", {"recipe": "byol_c", "size": 16}])
def test_an_unknown_recipe_is_refused_with_the_nearest_and_the_known(entry):
    message = r"'byol_c' \(did you mean 'byol_.'\?\); choose one of weak, "
    with pytest.raises(ValueError, match=message):
        resolve_recipe(entry)


@pytest.mark.parametrize("name", [3, None, ["weak"]])
def test_a_recipe_that_is_no_name_is_refused(name):
    with pytest.raises(ValueError, match="unknown recipe"):
        resolve_recipe({"recipe": name})


@pytest.mark.parametrize("entry,place", [({"crop": 1}, "crop"), ({"size": -1}, "size")])
def test_a_wrong_change_is_refused_by_its_place(entry, place):
    with pytest.raises(ValidationError) as error:
        written(["weak", {"recipe": "strong"} | entry])
    assert error.value.errors()[0]["loc"] == ("views", 1, place)


def test_expanding_gives_one_recipe_per_view_in_order():
    small = ViewRecipe(size=16, count=3)
    single = ViewRecipe(size=16)
    assert expand((RECIPES["weak"], small, RECIPES["strong"])) == (
        RECIPES["weak"],
        single,
        single,
        single,
        RECIPES["strong"],
    )


def test_expanding_twice_changes_nothing():
    once = expand((ViewRecipe(count=2),))
    assert expand(once) == once


@pytest.mark.parametrize(
    "values,word",
    [
        ({"scale": (0.9, 0.2)}, "scale"),
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"scale": (0.2, 1.5)}, "scale"),
        ({"ratio": (2.0, 1.0)}, "ratio"),
        ({"blur_sigma": (0.0, 2.0)}, "blur_sigma"),
        ({"blur_kernel": 4}, "blur_kernel"),
        ({"hue": 0.6}, "hue"),
        ({"flip": 1.2}, "flip"),
        ({"brightness": -0.1}, "brightness"),
        ({"flipp": 0.5}, "flipp"),
        ({"size": 0}, "size"),
        ({"count": 0}, "count"),
    ],
)
def test_impossible_recipes_are_refused_by_name(values, word):
    with pytest.raises(ValidationError, match=word):
        ViewRecipe(**values)


def test_the_largest_settings_that_mean_something_are_taken():
    recipe = ViewRecipe(hue=0.5, scale=(1.0, 1.0), blur_kernel=3)
    assert (recipe.hue, recipe.scale, recipe.blur_kernel) == (0.5, (1.0, 1.0), 3)
