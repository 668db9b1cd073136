from command_line import finetune


def test_ls_shows_the_purpose_of_each_recipe(tmp_path):
    out = finetune("ls", cwd=tmp_path, columns=300).stdout
    assert "quickstart" in out
    assert "clip_vit_b32" in out
    assert "zero-shot" in out
