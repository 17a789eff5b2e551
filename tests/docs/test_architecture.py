"""ARCHITECTURE.md tells what the code does: the layers, the stops of the main path, and the files it names."""

import ast
import re
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.test_layers import LAYERS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


class Stop(NamedTuple):
    """A row of the table of stops."""

    file: str
    function: str


STOPS = [Stop(*found) for found in re.findall(r"^\| `(metarun/[\w/]+\.py)` \| `(\w+)` \| ", PAGE, re.MULTILINE)]


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def parse(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def test_the_drawing_and_the_table_show_the_layers_that_the_imports_obey() -> None:
    _, drawing, table = section("Layers").split("```")
    drawn = [tuple(re.findall(r"\w+", line)) for line in drawing.removeprefix("text").splitlines()]
    assert tuple(rooms for rooms in drawn if rooms) == LAYERS
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [room for rooms in LAYERS for room in rooms]


def test_every_room_of_the_package_has_a_layer() -> None:
    rooms = {path.parent.name for path in (ROOT / "metarun").glob("*/__init__.py")}
    assert {room for layer in LAYERS for room in layer} == rooms


def test_the_main_path_goes_down_the_layers() -> None:
    floors = {room: floor for floor, rooms in enumerate(LAYERS) for room in rooms}
    path = [floors[stop.file.split("/")[1]] for stop in STOPS]
    assert (path[0], path[-1]) == (floors["cli"], floors["core"])
    assert path == sorted(path)


@pytest.mark.parametrize("stop", STOPS, ids=str)
def test_a_stop_defines_its_function(stop: Stop) -> None:
    defined = {node.name for node in ast.walk(parse(stop.file)) if isinstance(node, ast.FunctionDef)}
    assert stop.function in defined


@pytest.mark.parametrize(("stop", "following"), pairwise(STOPS), ids=str)
def test_a_stop_calls_the_next_one(stop: Stop, following: Stop) -> None:
    """By its name; what it calls may have been handed to it, as a method is to the gradient."""
    used = {node.id for node in ast.walk(parse(stop.file)) if isinstance(node, ast.Name)}
    used |= {node.attr for node in ast.walk(parse(stop.file)) if isinstance(node, ast.Attribute)}
    assert following.function in used


def test_the_files_that_it_names_exist() -> None:
    named = re.findall(r"`((?:metarun|tests|configs)/[\w/.]+)`", PAGE)
    named += [f"metarun/{name}" for name in re.findall(r"`((?:engine|runs)/\w+\.py)`", PAGE)]
    assert len(named) > 20
    assert [name for name in named if "yours" not in name and not (ROOT / name).exists()] == []
