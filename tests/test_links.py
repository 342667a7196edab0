import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


def test_every_link_between_files_leads_somewhere():
    links = [(page, link) for page in PAGES for link in _links(page)]
    broken = [f"{page.relative_to(ROOT)}: {link}" for page, link in links if not (page.parent / link).exists()]
    assert links
    assert broken == []


def _links(page: Path) -> list[str]:
    targets = re.findall(r"\]\(([^)\s#]+)[^)]*\)", page.read_text())
    return [target for target in targets if "://" not in target and not target.startswith("mailto:")]
