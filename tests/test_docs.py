"""The pages of the docs: their shell and Python blocks run as they stand, page by page, or say what they need.

A block whose first line is ``# needs: ...`` is not run; that its commands, options, make targets and recipes exist is
checked. `docs/api.md` runs in tests/server/test_docs.py.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple

import pytest

from tests.server.helpers import serving

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = ("sh", "python")
NEEDS = "# needs: "
SHOWN = ("text", "json", "yaml", "toml", "html", "ini", "nginx", "promql", "sql")
"""What is shown and never run."""
SERVED = ("howto/label-studio.md", "howto/supervision.md")
"""Pages that speak to a server, at $URL with $KEY."""
BEFORE = {
    "README.md": "from bpr_service.examples import load_example\n"
    "example = load_example('coffee')\n"
    "image, masks = example.image, [entry['segmentation'] for entry in example.instances]\n"
}
"""What a page's Python takes for given."""


class Block(NamedTuple):
    page: str
    language: str
    code: str

    @property
    def runs(self) -> bool:
        """Whether it is run here; a server there is, for the pages that speak to one."""
        served = self.page in SERVED and self.code.startswith(f"{NEEDS}a server")
        return self.language in RUN and (served or not self.code.startswith(NEEDS))


def blocks(page: Path) -> list[Block]:
    name = str(page.relative_to(ROOT)).removeprefix("docs/")
    found = re.findall(r"^( *)```([^\n]*)\n(.*?)^\1```$", page.read_text(), re.S | re.M)
    return [Block(name, language.strip(), dedent(code)) for _, language, code in found]


ALL = [block for page in PAGES for block in blocks(page)]


def test_every_block_says_what_it_is() -> None:
    assert len(ALL) > 40
    wrong = [block for block in ALL if block.language not in (*RUN, *SHOWN)]
    assert wrong == [], "a block is sh or python, or one of what is only shown"
    hidden = [
        b for b in ALL if b.language in SHOWN and re.search(r"^\s*(\$ )?(bpr|bpr-train|make|curl) ", b.code, re.M)
    ]
    assert [b for b in hidden if not b.page.startswith("reference/")] == [], "commands are in sh blocks"
    assert all(len(b.code.splitlines()[0]) > len(NEEDS) + 3 for b in ALL if b.code.startswith("# needs")), "say what"


@pytest.mark.parametrize("page", sorted({block.page for block in ALL if block.runs} - {"api.md"}))
def test_the_blocks_of_a_page_run(page: str, tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    script = []
    for number, block in enumerate(block for block in ALL if block.page == page and block.runs):
        if block.language == "python":
            (tmp_path / f"block_{number}.py").write_text(BEFORE.get(page, "") + block.code)
            script.append(f"python block_{number}.py")
        else:
            script.append(block.code)
    with serving() if page in SERVED else nullcontext() as server:
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "BPR_MODEL_STORE": str(tmp_path / "models"),
            **({"URL": server.url, "KEY": "none"} if server else {}),
        }
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", "\n".join(script)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]


def calls(code: str) -> Iterator[list[str]]:
    """The words of each command of a shell block, in pipes and after variables as well."""
    pending = ""
    for line in code.replace("\\\n", " ").splitlines():
        pending += line + "\n"
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # a quote goes on in the next line
            continue
        pending = ""
        call: list[str] = []
        for word in [*words, ";"]:
            if word in ("|", ";", "&", "&&", "||"):
                yield call
                call = []
            elif call or not re.match(r"\w+=", word):
                call.append(word)


@cache
def command(name: str) -> Any:
    import typer

    from bpr_service.cli import app
    from refiner_training.cli import app as trainer

    return typer.main.get_command({"bpr": app, "bpr-train": trainer}[name])


def problem(words: list[str]) -> str | None:
    """What is wrong with a call of ours; None where nothing is, or where it is not ours."""
    if words[:1] == ["make"]:
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        return next((f"no target {word}" for word in words[1:] if word not in targets), None)
    if words[:1] == ["sh"] or words[:2] == ["python", "-m"] or not words or words[0] not in ("bpr", "bpr-train"):
        return None
    there, rest = command(words[0]), words[1:]
    while hasattr(there, "commands") and rest and not rest[0].startswith("-"):
        if rest[0] not in there.commands:
            return f"no command {' '.join(words)}"
        there, rest = there.commands[rest[0]], rest[1:]
    inner = getattr(there, "commands", {}).values()  # `bpr batch --workers` speaks of each of its commands
    known = {o for c in (there, *inner) for p in c.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
    given = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
    if given - known:
        return f"no option {sorted(given - known)} of {' '.join(words)}"
    for parameter in there.params:
        if parameter.required and parameter.param_type_name == "option" and not given & set(parameter.opts):
            return f"{parameter.opts[0]} is left out of {' '.join(words)}"
    recipe = next((w for w in rest if w.startswith(("refiner_training/", "examples/"))), None)
    return f"no file {recipe}" if recipe and not (ROOT / recipe).exists() else None


def test_commands_that_are_not_run_exist() -> None:
    code = [block.code for block in ALL if block.language == "sh"]
    inline = [c for page in PAGES for c in re.findall(r"`((?:bpr|bpr-train|make) [a-z][^`\n]*)`", page.read_text())]
    found = [words for text in code for words in calls(text) if words]
    assert sum(words[0] in ("bpr", "bpr-train") for words in found) > 25
    assert [wrong for words in found if (wrong := problem(words))] == []
    names = [[word for word in shlex.split(text) if re.match(r"-*[a-z]", word)] for text in inline]
    unknown = [p for words in names if (p := problem(words)) and "left out" not in p]
    assert unknown == []


@pytest.mark.parametrize(
    "line",
    [
        "bpr bacth instance --images a",
        "bpr batch instance --images a --predictions b",
        "bpr batch instance --images a --predictions b --out c --devise cuda",
        "make everything",
        "A=1 bpr-train refiner refiner_training/configs/none.yaml",
        "echo a | bpr refine a b -o c --colour red",
        "bpr jobs submit '{\"a\":\n1}' --idd x",
    ],
)
def test_the_check_sees_what_does_not_exist(line: str) -> None:
    assert any(problem(words) for words in calls(line))


@pytest.mark.parametrize("program", ["bpr", "bpr-train"])
def test_every_help_ends_with_a_call_that_exists(program: str) -> None:
    from bpr_service import cli
    from bpr_service.command_examples import commands
    from refiner_training import cli as trainer

    there = {"bpr": cli, "bpr-train": trainer}[program]
    found = {words: command.epilog for words, command in commands(there.app)}
    assert found.keys() == there.EXAMPLES.keys()
    calls_ = [str(epilog).removeprefix("Example: ") for epilog in found.values()]
    assert all(call.startswith(f"{program} ") for call in calls_)
    assert [wrong for call in calls_ if (wrong := problem(shlex.split(call)))] == []
