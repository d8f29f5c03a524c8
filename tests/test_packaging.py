"""What others run: workflows, container recipes, the citation. None of them can be tried here, all can be read."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, BUILD = PYPROJECT["project"], PYPROJECT["tool"]["hatch"]["build"]
DOCKERFILE = (ROOT / "containers" / "Dockerfile").read_text()
APPTAINER = (ROOT / "containers" / "accel_train.def").read_text()
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def sections(definition: str) -> dict[str, str]:
    """The sections of an Apptainer definition, and its head as ""."""
    names = ["", *re.findall(r"^%(\w+)", definition, re.M)]
    return dict(zip(names, re.split(r"^%\w+.*\n", definition, flags=re.M), strict=True))


def copied(recipe: str) -> set[str]:
    if recipe == "docker":
        return {word for line in re.findall(r"^COPY (.*)", DOCKERFILE, re.M) for word in line.split()[:-1]}
    return {line.split()[0] for line in sections(APPTAINER)["files"].splitlines() if line.strip()}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_calls_targets_of_the_makefile_only(path: Path):
    jobs = yaml.safe_load(path.read_text())["jobs"].values()
    steps = [step for job in jobs for step in job["steps"]]
    targets = [re.fullmatch(r"make ([\w-]+)", step["run"]) for step in steps if "run" in step]
    assert targets and all(match and re.search(rf"^{match[1]}:", MAKEFILE, re.M) for match in targets)
    assert all(set(step) <= {"run", "uses", "with"} for step in steps)
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in steps if "uses" in step)
    assert all(job["timeout-minutes"] <= 90 for job in jobs)


def test_workflows_have_a_read_only_token():
    assert {path.name for path in WORKFLOWS} == {"docs.yml", "test.yml"}
    assert all(yaml.safe_load(path.read_text())["permissions"] == {"contents": "read"} for path in WORKFLOWS)


def test_read_the_docs_builds_what_make_docs_builds():
    config = yaml.safe_load((ROOT / ".readthedocs.yaml").read_text())
    assert (ROOT / config["sphinx"]["configuration"]).is_file() and config["sphinx"]["fail_on_warning"] is True
    assert config["python"]["install"][0]["extra_requirements"] == ["docs"] and PROJECT["optional-dependencies"]["docs"]
    assert re.search(r"^docs:.*\n\t.* -m sphinx .*-W ", MAKEFILE, re.M)


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation), "what the format requires"
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert citation["authors"] == PROJECT["authors"] and citation["keywords"] == PROJECT["keywords"]


def test_the_dockerfile_has_instructions_in_order():
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.M)).split("\n")
    words = [line.split()[0] for line in lines if line.strip()]
    assert words[0] == "FROM" and words[-2:] == ["ENTRYPOINT", "CMD"]
    assert set(words) <= {"FROM", "ARG", "RUN", "COPY", "ENV", "WORKDIR", "ENTRYPOINT", "CMD"}


def test_the_definition_has_sections_that_a_shell_reads():
    parts = sections(APPTAINER)
    assert re.match(r"Bootstrap: docker\nFrom: [\w.:-]+\n", parts[""]), "Bootstrap comes first"
    assert set(parts) == {"", "help", "files", "post", "environment", "test", "runscript", "labels"}
    for name in ("post", "environment", "test", "runscript"):
        subprocess.run(["sh", "-n"], input=parts[name], text=True, check=True)


def test_both_recipes_make_the_same():
    base = re.search(r"^FROM (.*)", DOCKERFILE, re.M)
    assert base and f"From: {base[1]}\n" in APPTAINER
    (torch,) = re.findall(r"^TORCH\s+\?= (.*)", MAKEFILE, re.M)
    assert f"ARG TORCH={torch}\n" in DOCKERFILE and f" {torch}\n" in APPTAINER
    (extras,) = re.findall(r"^ARG EXTRAS=(.*)", DOCKERFILE, re.M)
    assert f"'/src[{extras}]'" in APPTAINER and set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    assert copied("docker") == copied("apptainer")


def test_the_recipes_copy_what_the_wheel_is_built_from():
    wheel = BUILD["targets"]["wheel"]
    needed = {"pyproject.toml", *wheel["packages"], *wheel["force-include"], *PROJECT["license-files"]}
    assert copied("docker") == needed and all((ROOT / name).exists() for name in needed)
