import subprocess
import sys

HEAVY = [
    "jax",
    "flax",
    "optax",
    "orbax",
    "transformers",
    "datasets",
    "grain",
    "numpy",
    "pydantic",
    "ruamel",
    "PIL",
    "sklearn",
]


def test_importing_the_package_imports_neither_jax_nor_transformers():
    code = f"import finetune, sys; print([m for m in {HEAVY} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_help_imports_nothing_that_takes_its_time():
    """Half a second is what Python, Typer and Rich need; each of these would take longer alone."""
    code = "import sys; sys.argv = ['finetune', '--help']\nfrom finetune.cli import main\ntry: main()\n"
    code += f"except SystemExit: print([m for m in {HEAVY} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Commands" in result.stdout
    assert result.stdout.splitlines()[-1] == "[]", result.stdout


def test_every_public_name_is_there():
    code = "import finetune; print(all(getattr(finetune, name) is not None for name in finetune.__all__))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "True"
