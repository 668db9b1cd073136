"""Environments that tests need beside the usual one. ``nox -l`` lists them."""

import nox

nox.options.sessions = ["transformers_flax", "lowest"]
nox.options.default_venv_backend = "uv|virtualenv"

_VERSIONS = """
from importlib.metadata import version
print(*(f"{name} {version(name)}" for name in ("jax", "flax", "optax", "orbax-checkpoint", "grain", "transformers")))
"""
_TELLING = (
    *("tests/recipe/test_schema.py", "tests/images/test_open.py", "tests/images/test_spec.py"),
    *(f"tests/weights/test_{name}.py" for name in ("layout", "tensors", "preprocessor")),
    *("tests/models/test_remat.py", "tests/optim", "tests/training/test_step.py", "tests/test_checkpoint.py"),
    "tests/cli/test_predict.py",  # a run, its model and the command line
)


@nox.session
def transformers_flax(session: nox.Session) -> None:
    """transformers 4.57, the last line with Flax classes: its modules through this toolkit, and the example of it.

    Test files given behind ``--`` run instead. ``--force-python`` chooses the interpreter.
    """
    session.install("-e", ".[test]", "transformers==4.57.*")
    session.run("python", "-c", _VERSIONS)
    tests = session.posargs or ["tests/models/test_transformers_flax.py", "tests/guides/test_transformers_flax.py"]
    session.run("pytest", *tests)


@nox.session(venv_backend="uv")
def lowest(session: nox.Session) -> None:
    """The lowest versions that pyproject.toml allows: what leans on them most, and a run from a recipe to predictions.

    Test files given behind ``--`` run instead.
    """
    session.install("-e", ".[test]", "--resolution", "lowest-direct")
    session.run("python", "-c", _VERSIONS)
    session.run("pytest", "--disable-warnings", *(session.posargs or _TELLING))
