"""What the repository promises about itself: files, names, requirements, versions."""

import ast
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from smoke_files import SMOKE

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "ssdistill"
LONGEST = 300
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc"}


def written_files(*folders):
    """What people wrote: no caches, nothing built."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            if "__pycache__" not in path.parts and path.is_file():
                yield path


@pytest.fixture(scope="module")
def setup():
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def lines(text):
    return [line.strip() for line in text.strip().splitlines() if line.strip()]


def test_every_package_is_installed(setup):
    listed = set(lines(setup["options"]["packages"]))
    folders = {path.parent for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts}
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    wanted = found | {"ssdistill.configs"}
    assert listed == wanted, "packages in setup.cfg must list every folder with code"


def test_every_folder_with_code_is_a_package():
    for path in PACKAGE.rglob("*.py"):
        assert (path.parent / "__init__.py").is_file(), path.parent


def test_every_file_that_is_no_code_is_installed_with_its_package(setup):
    wanted = setup["options.package_data"]
    homes = {"ssdistill.configs": ROOT / "configs"}
    covered = set()
    for package, patterns in wanted.items():
        home = homes.get(package, ROOT / package.replace(".", "/"))
        for pattern in lines(patterns):
            covered |= set(home.glob(pattern))
    assert covered
    missing = [p for p in written_files("ssdistill", "configs") if p.suffix != ".py"]
    assert [str(p.relative_to(ROOT)) for p in missing if p not in covered] == []


def test_configs_are_found_where_setup_says_they_are(setup):
    places = dict(line.split(" = ") for line in lines(setup["options"]["package_dir"]))
    assert places == {"ssdistill.configs": "configs"}
    assert (ROOT / "configs" / "__init__.py").is_file()


def test_the_command_exists(setup):
    (script,) = lines(setup["options.entry_points"]["console_scripts"])
    module, function = re.fullmatch(r"ssdistill = ([\w.]+):(\w+)", script).groups()
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


DISTRIBUTIONS = {
    "PIL": "pillow",
    "lightning_fabric": "pytorch-lightning",
    "pillow_heif": "pillow-heif",
    "pillow_jxl": "pillow-jxl-plugin",
    "sklearn": "scikit-learn",
    "torch_pruning": "torch-pruning",
    "umap": "umap-learn",
    "xdist": "pytest-xdist",
    "yaml": "pyyaml",
}
"""What a module is called when it is installed, where that is not the module's name."""
INDIRECT = {"torch.utils.tensorboard": "tensorboard"}
"""Modules of one distribution that need another one."""


def imported_distributions(folder):
    """Every distribution outside the standard library that the code below a folder imports."""
    names = {}
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module]
            for module in modules:
                top = module.split(".")[0]
                names.setdefault(DISTRIBUTIONS.get(top, top), path.name)
                if module in INDIRECT:
                    names.setdefault(INDIRECT[module], path.name)
    ours = {"ssdistill", *sys.stdlib_module_names}
    return {name: path for name, path in names.items() if name not in ours}


def requirements(setup, *extras):
    """Names of what is required always, or of what some extras add."""
    texts = [setup["options.extras_require"][extra] for extra in extras]
    texts = texts or [setup["options"]["install_requires"]]
    return {re.split(r"[<>=[]", line)[0] for text in texts for line in lines(text)}


def test_what_the_code_imports_is_required(setup):
    declared = requirements(setup) | requirements(setup, *setup["options.extras_require"])
    undeclared = {
        name: path
        for name, path in imported_distributions("ssdistill").items()
        if name not in declared
    }
    assert undeclared == {}


def test_what_is_required_is_imported(setup):
    assert requirements(setup) - imported_distributions("ssdistill").keys() == set()


def test_what_an_extra_adds_is_imported(setup):
    extras = setup["options.extras_require"].keys() - {"dev"}
    assert requirements(setup, *extras) - imported_distributions("ssdistill").keys() == set()


def test_what_the_tests_import_is_a_tool_or_a_requirement(setup):
    declared = requirements(setup) | requirements(setup, "dev")
    local = {path.stem for path in (ROOT / "tests").rglob("*.py")}
    undeclared = {
        name: path
        for name, path in imported_distributions("tests").items()
        if name not in declared | local
    }
    assert undeclared == {}


def test_every_requirement_has_a_lower_bound_that_the_smoke_tests_install(setup):
    printed = subprocess.run(
        [sys.executable, ROOT / ".ci" / "lowest.py"], capture_output=True, text=True, check=True
    ).stdout.split()
    texts = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    promised = {line for text in texts for line in lines(text)}
    lowest = {re.sub(r"\[.*\]", "", line).replace(">=", "==") for line in promised}
    assert sorted(lowest) == sorted(printed)


def test_every_module_can_be_read_in_one_go():
    long = {
        str(path.relative_to(ROOT)): count
        for path in written_files("ssdistill")
        if path.suffix == ".py" and (count := len(path.read_text().splitlines())) > LONGEST
    }
    assert long == {}, f"move a part that can be read alone into a file of its own: {long}"


def test_no_name_says_nothing():
    vague = [
        str(path.relative_to(ROOT))
        for path in written_files("ssdistill", "tests", "experiments", "configs")
        if VAGUE & {part.split(".")[0].lower() for part in path.relative_to(ROOT).parts}
    ]
    assert vague == []


def test_test_files_have_names_of_their_own():
    names = [path.name for path in written_files("tests") if path.name.startswith("test_")]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "LICENSE", "CITATION.cff"])
def test_a_reader_finds(name):
    assert (ROOT / name).read_text().strip()


def test_one_version_everywhere(setup):
    version = setup["metadata"]["version"]
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited.group(1) == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_links_in_the_readme_lead_somewhere():
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / "README.md").read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_smoke_tests_exist():
    assert SMOKE - {path.name for path in written_files("tests")} == set()
