"""The files that other tools and services read: they hold what those ask for, and agree."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pinned(name: str) -> str:
    found = re.search(rf"^{name}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def test_the_citation_has_what_its_format_asks_for() -> None:
    """Keys of the Citation File Format 1.2.0; the package as in pyproject.toml, and the paper."""
    cited = read("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert cited["cff-version"] == "1.2.0" and cited["type"] == "software"
    assert str(cited["version"]) == project()["version"]
    assert cited["license"] == project()["license"]
    (paper,) = cited["references"]
    assert {"type", "title", "authors"} <= paper.keys()
    assert paper["identifiers"] == [{"type": "other", "value": "arXiv:2506.07963"}]
    for person in cited["authors"] + paper["authors"]:
        assert person.keys() in ({"name"}, {"family-names", "given-names"})


def test_ci_runs_the_projects_own_check_on_the_oldest_python() -> None:
    workflow = read(".github/workflows/ci.yml")
    steps = workflow["jobs"]["check"]["steps"]
    (check,) = [step["run"] for step in steps if "run" in step]
    assert (ROOT / check).stat().st_mode & 0o111
    (version,) = [s["with"]["python-version"] for s in steps if "setup-python" in s.get("uses", "")]
    assert f">={version}" == project()["requires-python"]
    assert {"push", "pull_request"} <= workflow[True].keys()  # YAML reads `on` as true


def test_the_readme_names_the_tests_that_ci_runs() -> None:
    """CI is terse, and says why a test is skipped."""
    run, readme = ((ROOT / name).read_text(encoding="utf-8") for name in (".ci/run", "README.md"))
    named = re.findall(r"^(pytest -n .*?) *(?:#.*)?$", readme, re.MULTILINE)
    ran = re.findall(r"^pytest -q -rfEs (.*)$", run, re.MULTILINE)
    assert [f"pytest {words}" for words in ran] == named and len(ran) == 2
    assert ran[1].endswith("-m slow")


def test_hooks_use_the_versions_of_the_project() -> None:
    repos = {
        repo["repo"].rpartition("/")[2]: repo for repo in read(".pre-commit-config.yaml")["repos"]
    }
    ruff = repos["ruff-pre-commit"]
    assert ruff["rev"] == f"v{pinned('ruff')}"
    assert [hook["id"] for hook in ruff["hooks"]] == ["ruff-check", "ruff-format"]
    schemas = repos["check-jsonschema"]
    assert schemas["rev"] == pinned("check-jsonschema")
    assert [hook["id"] for hook in schemas["hooks"]] == ["check-github-workflows"]
    assert {"trailing-whitespace", "check-yaml", "check-toml"} <= {
        hook["id"] for hook in repos["pre-commit-hooks"]["hooks"]
    }


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("github-workflows", ["workflows/ci.yml"]),
        ("github-issue-config", ["ISSUE_TEMPLATE/config.yml"]),
        ("github-issue-forms", [f"ISSUE_TEMPLATE/{f.name}" for f in FORMS if f.stem != "config"]),
    ],
)
def test_what_github_reads_follows_its_schemas(kind: str, names: list[str]) -> None:
    """A form with a mistake is not shown at all, a workflow with one does not run."""
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{kind}"]
    done = subprocess.run([*check, *names], cwd=ROOT / ".github", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_is_a_form_for_each_kind_of_issue() -> None:
    assert [form.stem for form in FORMS] == ["bug", "config", "model", "question"]
