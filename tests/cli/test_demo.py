import socket
import sys

import pytest
from command_line import clean_failure, finetune


def test_demo_without_gradio_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    clean_failure(finetune("demo", tmp_path, "--port", "0"), "pip install 'flax-finetune[demo]'")


def test_demo_on_a_port_that_is_taken_names_another(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = finetune("demo", tmp_path, "--port", port)
    clean_failure(said, f"error: --port: {port} is taken by another program; end it, or choose another: --port")


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host", "\udcff"])
def test_demo_on_an_address_of_another_machine_is_refused(tmp_path, host):
    clean_failure(finetune("demo", tmp_path, "--host", host), "--host: ", "such as 127.0.0.1")


def test_demo_refuses_a_coverage_that_makes_no_sense(tmp_path):
    clean_failure(finetune("demo", tmp_path, "--coverage", "90"), "--coverage: a share between 0 and 1")


@pytest.mark.slow
def test_demo_of_a_folder_without_a_model_names_it(tmp_path):
    pytest.importorskip("gradio", reason="needs Gradio (the extra `demo`)")
    clean_failure(finetune("demo", tmp_path, "--port", "0"), f"{tmp_path}: no run and no model bundle")
