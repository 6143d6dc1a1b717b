"""How a person gets what is missing."""

import tomllib
from pathlib import Path

import pytest

from evalkit.machine import how_to_install

DECLARED = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.parametrize(("package", "extra"), [("peft", "train"), ("ray", "ray"), ("vllm", "vllm")])
def test_a_missing_package_is_installed_by_its_own_name_in_the_versions_that_are_declared(package, extra):
    declared = DECLARED["optional-dependencies"][extra][0].partition(";")[0]
    command = how_to_install(package)
    name, bounds = (
        command.removeprefix("pip install '").removesuffix("'"),
        set(declared.removeprefix(package).split(",")),
    )
    assert name.startswith(package)
    assert set(name.removeprefix(package).split(",")) == bounds


def test_nothing_asks_a_package_index_for_evalkit_itself():
    """The name is another project's there: 'pip install evalkit[vllm]' would install that."""
    root = Path(__file__).parents[1]
    told = [*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("evalkit/**/*.py"), *root.glob("results/*.md")]
    asked = [
        str(path) for path in told if "evalkit[" in path.read_text(encoding="utf-8").replace("import evalkit[", "")
    ]
    assert len(told) > 100
    assert asked == []
