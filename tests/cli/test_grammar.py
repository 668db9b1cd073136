import shlex

import pytest
from command_line import clean_failure, finetune
from typer.main import get_command

from finetune import __version__
from finetune.cli.grammar import EXAMPLES, HINTS
from finetune.cli.main import app


def verbs():
    return get_command(app).commands


def test_every_verb_has_examples_that_its_parser_takes():
    assert verbs().keys() == EXAMPLES.keys()
    for verb, examples in EXAMPLES.items():
        for example in examples:
            program, name, *arguments = shlex.split(example.partition(">")[0])
            assert (program, name) == ("finetune", verb)
            verbs()[verb].make_context(verb, arguments)


@pytest.mark.parametrize("verb", EXAMPLES)
def test_help_shows_the_examples(verb):
    shown = finetune(verb, "-h", columns=200).stdout
    assert all(example in shown for example in EXAMPLES[verb])


def test_the_words_of_other_tools_lead_to_ours():
    assert not HINTS.keys() & verbs().keys()
    assert set(HINTS.values()) <= verbs().keys()
    clean_failure(finetune("val", "checkpoints/x", columns=200), "No such command 'val'. Here it is 'evaluate'")


def test_version_names_the_program_and_jax():
    shown = finetune("--version").stdout
    assert shown.startswith(f"finetune {__version__} (jax ")
