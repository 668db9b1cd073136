import signal
import subprocess
import sys

import pytest
from command_line import clean_failure, finetune, in_a_process

from finetune.errors import Interrupted
from finetune.recipe import source

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
    "matplotlib",
]
VERBS = ["run", "predict", "evaluate", "compare", "check-data", "plan", "inspect", "schema", "ls", "models"]


def modules_after(code):
    """The names of all modules that a new Python imports for some code, and what the code prints."""
    code = f"import sys\n{code}\nprint(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *shown, modules = result.stdout.splitlines()
    return set(modules.split()), "\n".join(shown)


def test_importing_the_package_imports_neither_jax_nor_transformers():
    modules, _ = modules_after("import finetune")
    assert "finetune" in modules
    assert not modules & set(HEAVY)


@pytest.mark.parametrize(
    ("arguments", "imports"),
    [(["--help"], set()), (["run", "--help"], {"pydantic"})],  # Typer itself uses pydantic for the values of a verb
)
def test_help_imports_only_what_the_terminal_needs(arguments, imports):
    """Python, Typer and Rich are about 350 modules, and with pydantic 450; JAX alone is about 700."""
    call = f"sys.argv = ['finetune', *{arguments}]\nfrom finetune.cli import main\ntry: main()\nexcept SystemExit: pass"
    modules, shown = modules_after(call)
    assert "Usage: finetune" in shown
    assert "typer" in modules
    assert modules & set(HEAVY) <= imports
    assert len(modules) < 600


def test_help_lists_every_verb():
    shown = finetune("--help").stdout
    commands = [line.split()[1] for line in shown.partition("Commands")[2].splitlines() if line.startswith("│ ")]
    assert [word for word in commands if word in VERBS] == VERBS


def test_every_public_name_is_there():
    code = "import finetune; print(all(getattr(finetune, name) is not None for name in finetune.__all__))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "True"


def test_a_stopped_run_ends_with_128_plus_the_signal_and_no_traceback(monkeypatch):
    def stop(path):
        raise Interrupted("stopped at step 3: continue with --resume", signal.SIGTERM)

    monkeypatch.setattr(source, "purpose", stop)
    result = finetune("ls")
    assert result.returncode == 128 + signal.SIGTERM
    assert result.stderr == "stopped at step 3: continue with --resume\n"


def test_an_error_of_the_file_system_is_one_message_that_names_the_file(small_run, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    result = finetune("compare", small_run.directory, "--figure", "file/c.png", cwd=tmp_path)
    clean_failure(result, "error: ", "file")
    assert result.stderr.count("\n") == 1


def test_an_unknown_verb_or_option_ends_with_exit_code_2():
    clean_failure(in_a_process("trian"), "trian")
    clean_failure(finetune("run", "quickstart", "--fast"), "--fast")


def test_a_name_cannot_make_the_terminal_obey(tmp_path):
    result = finetune("check-data", "quickstart", f"data.source={tmp_path}/\x1b[31mred\x07")
    clean_failure(result, r"\x1b[31mred\x07")
    assert "\x1b" not in result.stderr
