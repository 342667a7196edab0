"""How a site is set up: what the page says, and the files that it names, are one."""

from __future__ import annotations

import configparser
import re
import shlex
import tomllib
from pathlib import Path

from konvoi.options import parse

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "at-a-site.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
CONTAINER = (ROOT / "deploy" / "Containerfile").read_text()


def service():
    found = configparser.ConfigParser(interpolation=None, strict=True)
    found.optionxform = str
    found.read(ROOT / "deploy" / "konvoi-site.service")
    return found["Service"]


def wheelhouse():
    """The target's commands."""
    return re.search(r"^wheelhouse:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)[1]


def test_every_file_of_deploy_is_on_the_page_and_every_link_of_the_page_leads_somewhere():
    linked = [one for one in re.findall(r"\]\(([^)#]+)\)", PAGE) if "://" not in one]
    assert [one for one in linked if not (ROOT / "docs" / one).exists()] == []
    assert {f"../deploy/{path.name}" for path in (ROOT / "deploy").iterdir()} <= {*linked}


def test_the_service_runs_the_command_of_the_page_with_the_data_read_only():
    command = service()["ExecStart"]
    program, *words = shlex.split(command)
    assert f"`konvoi {' '.join(words)}`" in PAGE
    options = parse(words)
    assert options.verb == "join"
    assert str(options.data) == service()["ReadOnlyPaths"]
    assert program.startswith("/opt/konvoi/")
    for told in ("/opt/konvoi", service()["WorkingDirectory"], f"user `{service()['User']}`"):
        assert told in PAGE
    assert service()["WorkingDirectory"] == service()["ReadWritePaths"] == f"/var/lib/{service()['StateDirectory']}"
    assert service()["ProtectSystem"] == "strict"


def test_the_wheelhouse_is_what_is_installed_at_a_site_and_in_a_container():
    (extras,) = re.findall(r"^EXTRAS \?= (.*)$", MAKEFILE, re.MULTILINE)
    install = f"--no-index --find-links wheels 'konvoi[{extras}]'"
    assert install in PAGE
    assert install.replace("wheels", "/wheels") in CONTAINER
    assert "COPY wheels /wheels" in CONTAINER
    assert "make wheelhouse" in PAGE
    assert "-w wheels ." in wheelhouse()
    assert "-d wheels -c constraints.txt" in wheelhouse()
    assert "/wheels/\n" in (ROOT / ".gitignore").read_text()
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for told in (extras, *re.findall(r"EXTRAS=([a-z,]+)", PAGE + MAKEFILE)):
        assert {*told.split(",")} <= {*known}


def test_the_container_runs_as_nobody_much_and_is_made_as_the_page_says():
    assert re.search(r"^USER (?!root)", CONTAINER, re.MULTILINE)
    build = "podman build -f deploy/Containerfile -t konvoi-site ."
    assert build in CONTAINER
    assert build in " ".join(PAGE.split())
    (told,) = re.findall(r"konvoi-site (join .*)", CONTAINER)
    assert str(parse(shlex.split(told)).data) == "/data"
    assert ":/data:ro" in CONTAINER
