"""What `python -m build` makes is complete: the wheel works where the sources are not."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "viceversa"
NOT_SOURCES = shutil.ignore_patterns(
    ".git", ".venv*", ".ci-venv", "runs", "build", "dist", "*.egg-info", "__pycache__", ".*_cache"
)

pytestmark = pytest.mark.slow


def run(command: list[str | Path], folder: Path) -> str:
    """Return what a command prints, run in `folder` without this process's paths."""
    env = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(c) for c in command], cwd=folder, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist, and with the wheel that is made from the sdist."""
    folder = tmp_path_factory.mktemp("build")
    sources = Path(shutil.copytree(ROOT, folder / "sources", ignore=NOT_SOURCES))
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist"]
    run([*build, sources], folder)
    return folder / "dist"


def package_files() -> set[str]:
    """Every file of the package that is under version control's eye, by its name in the wheel."""
    files = (path for path in PACKAGE.rglob("*") if path.is_file())
    return {
        f"viceversa/{path.relative_to(PACKAGE).as_posix()}"
        for path in files
        if "__pycache__" not in path.parts
    }


def test_both_hold_every_file_of_the_package(built: Path) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
    wanted = package_files()
    needed = {"py.typed", "recipes/builtin.yaml", "assets/tiny-janus/model.safetensors"}
    assert {f"viceversa/{name}" for name in {*needed, "publish/card.md"}} <= wanted
    assert wanted <= names
    assert all(n.startswith("viceversa/") or ".dist-info/" in n for n in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    with tarfile.open(sdist) as opened:
        packed = {name.partition("/src/")[2] for name in opened.getnames()}
    assert wanted <= packed


def test_the_wheel_works_from_nothing(built: Path, tmp_path: Path) -> None:
    """In an environment of its own, which borrows the dependencies that are installed here."""
    (wheel,) = built.glob("*.whl")
    venv.create(tmp_path / "fresh", with_pip=True)
    python = tmp_path / "fresh" / "bin" / "python"
    run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel], tmp_path)
    (site,) = (tmp_path / "fresh" / "lib").glob("python*/site-packages")
    # a path without its .pth files, so that an editable install of the sources is not seen
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    where = run([python, "-c", "import viceversa; print(viceversa.__file__)"], tmp_path)
    assert Path(where.strip()).is_relative_to(site)
    assert "train" in run([tmp_path / "fresh" / "bin" / "viceversa", "--help"], tmp_path)
    draw = """
import viceversa as vv
from viceversa.config import recipe_names
((picture,),) = vv.load("builtin").draw(["a red circle"])
print(picture.size, recipe_names())
"""
    drawn = run([python, "-c", draw], tmp_path)
    for recipe in (PACKAGE / "recipes").glob("*.yaml"):
        assert f"'{recipe.stem}'" in drawn
    assert drawn.startswith("(")
    few = ["--steps", "2", "--set", "eval.specs_per_kind=1", "--set", "eval.held_out_inputs=2"]
    few += ["--set", "data.prompts_per_step=4", "--set", "data.images_per_step=4"]
    run([tmp_path / "fresh" / "bin" / "viceversa", "train", "--output", "run", *few], tmp_path)
    assert "<h1>" in (tmp_path / "run" / "report.html").read_text()
    assert (tmp_path / "run" / "checkpoint-2" / "model.safetensors").is_file()
