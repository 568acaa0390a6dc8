"""Completion in the shell: installed into a home folder, and asked by a shell for the words that fit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture
def bash(tmp_path):
    """Returns a function that runs lines of bash, with the program `vit-ipu` and an empty home folder."""
    program = tmp_path / "bin" / "vit-ipu"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vit_ipu "$@"\n')
    program.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    environment = dict(os.environ, HOME=str(home), PATH=f"{program.parent}{os.pathsep}{os.environ['PATH']}")

    def call(lines):
        command = ["bash", "--norc", "-c", f"{lines}\ntrue"]  # true: bash stays the parent, whose name is looked up
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    call.home = home
    return call


def test_completion_is_installed_for_the_name_of_the_program(bash):
    assert "completion installed in" in bash("vit-ipu --install-completion")
    assert "source" in (bash.home / ".bashrc").read_text()
    script = (bash.home / ".bash_completions" / "vit-ipu.sh").read_text()
    assert "complete -o default -F _vit_ipu_completion vit-ipu" in script
    asked = "COMP_WORDS=(vit-ipu {}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _vit_ipu_completion vit-ipu; "
    asked += 'echo "${{COMPREPLY[@]}}"\n'
    lines = 'source "$HOME/.bash_completions/vit-ipu.sh"\n' + asked.format("pre") + asked.format("train --re")
    assert bash(lines).splitlines() == ["predict", "--resume --restart --rescan"]


def test_the_script_is_shown(bash):
    shown = bash("vit-ipu --show-completion")
    assert "complete -o default -F _vit_ipu_completion vit-ipu" in shown
    assert not list(bash.home.iterdir())


@pytest.mark.parametrize(
    ("shell", "expected"),
    [("zsh", '_arguments \'*: :(("predict":"Print the five'), ("fish", "predict\tPrint the five")],
)
def test_other_shells_are_answered(bash, shell, expected):
    variables = f"_VIT_IPU_COMPLETE=complete_{shell} _TYPER_COMPLETE_ARGS='vit-ipu pre'"
    variables += " _TYPER_COMPLETE_FISH_ACTION=get-args"
    assert bash(f"{variables} vit-ipu").startswith(expected)
