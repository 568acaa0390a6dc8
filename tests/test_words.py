"""Plain English: words that readers stumble over do not occur in the program and its pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [*sorted((ROOT / "vit_ipu").rglob("*.py")), *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md"))]
PAGES += [*sorted((ROOT / "pipeline_configs").glob("*.yaml")), *sorted((ROOT / "benchmarks").glob("*.py"))]
BANNED = {
    r"\banew\b": "again",
    r"\bwho(so)?ever\b": "the user, the process that ...",
    r"\bheed(s|ed)?\b": "follows, obeys",
    r"(?<!there )(?<!There )\b(is|are) no (?!longer\b|more\b|such\b|other\b)[a-z]": "is not a ...",
    r"\bof ours\b": "our, this program's",
    r"\b(goes|go|going|went) on\b": "continues, resumes",
    r"\bnobody knows\b": "is not known",
    r"\bwhat is usual\b": "the usual ...",
    r"\bno words?\b": "not a string",
    r"\bin vain\b": "without effect",
    r"\bfor want of\b": "because ... is missing",
    r"\bhears? of\b": "is told",
}
"""Patterns of banned words, and what to say instead."""


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_banned_word(path):
    text = re.sub(r"\s*\n\s*#?\s*", " ", path.read_text(encoding="utf-8"))
    for pattern, instead in BANNED.items():
        found = re.search(pattern, text)
        assert found is None, f"{text[max(found.start() - 40, 0) : found.end() + 40]!r}: say {instead!r}"


@pytest.mark.parametrize("wrong", ["files are\n    # listed anew", "it is no image", "a run of ours", "goes on there"])
def test_the_rule_finds_what_it_bans(wrong):
    text = re.sub(r"\s*\n\s*#?\s*", " ", wrong)
    assert any(re.search(pattern, text) for pattern in BANNED)


@pytest.mark.parametrize("right", ["there is no such file", "it is no longer there", "read it again", "resumes there"])
def test_the_rule_lets_plain_english_pass(right):
    assert not any(re.search(pattern, right) for pattern in BANNED)
