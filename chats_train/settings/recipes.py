"""Recipes: configs for one purpose, bundled with the package as `chats_train/recipes/<family>-<recipe>.yaml`."""

from __future__ import annotations

import difflib
from pathlib import Path

from ..support.errors import UserError

FOLDER = Path(__file__).resolve().parents[1] / "recipes"


def recipe_names(family: str) -> list[str]:
    """The recipes of a family, such as `paper` and `8gb`."""
    return sorted(path.stem.removeprefix(f"{family}-") for path in FOLDER.glob(f"{family}-*.yaml"))


def read_recipe(family: str, name: str) -> str:
    """The YAML of a recipe.

    Raises:
        UserError: when the family has no such recipe.
    """
    names = recipe_names(family)
    if not names:
        families = sorted({path.stem.partition("-")[0] for path in FOLDER.glob("*.yaml")})
        raise UserError(
            f"`--recipe` is {name}, but there is none for `{family}`; recipes are there for {', '.join(families)}: "
            "choose one of these, or leave `--recipe` out"
        )
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"`--recipe` is {name}, which `{family}` has not; choose one of {', '.join(names)}{hint}")
    return (FOLDER / f"{family}-{name}.yaml").read_text(encoding="utf-8")
