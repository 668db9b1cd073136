"""Environments that tests need beside the usual one. ``nox -l`` lists them."""

import nox

nox.options.sessions = ["transformers_flax"]


@nox.session
def transformers_flax(session: nox.Session) -> None:
    """transformers 4.57, the last line with Flax classes: its modules through this toolkit, and the example of it.

    Test files given behind ``--`` run instead. ``--force-python`` chooses the interpreter.
    """
    session.install("-e", ".[dev]", "transformers==4.57.*")
    tests = session.posargs or ["tests/models/test_transformers_flax.py", "tests/guides/test_transformers_flax.py"]
    session.run(
        "python", "-c", "import jax, transformers as t; print('jax', jax.__version__, 'transformers', t.__version__)"
    )
    session.run("pytest", *tests)
