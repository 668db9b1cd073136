"""The command line: a file for each verb, which parses, calls one public function and prints."""

from finetune.cli.main import main

__all__ = ["main"]
