"""Builds the site from docs/ and from the repository's other documents, and fills in generated tables.

Documents outside docs/ keep their paths in the site, so that links between them work. A link from docs/ to one of them
begins with `../`, a link back with `docs/` or `../../docs/`. These links are valid in a checkout and are shortened here
for the site.
"""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from capo_fast.config import help as tables
from capo_fast.plan import page as plans

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    "BENCHMARKS.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "kernels/README.md",
    "bench/NOTES.md",
    "configs/README.md",
    "configs/cluster/README.md",
    "configs/paper/README.md",
    *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "examples").rglob("README.md"))),
]
SHOWN = (".md", ".json", ".png", ".svg")
"""Kinds of files under bench/results/ that pages link to."""
TABLES = {
    "<!-- settings -->": tables.markdown,
    "<!-- settings of capo sft -->": tables.sft_markdown,
    "<!-- hardware -->": plans.hardware_table,
    "<!-- plans of the paper's policies -->": plans.paper_table,
    "<!-- plans beside another trainer's figures -->": plans.published_table,
}
"""Placeholders in pages, and the functions that return their tables. The table also replaces the next line, which is
for readers of the checkout."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    results = sorted(path for path in (ROOT / "bench/results").rglob("*") if path.suffix in SHOWN)
    for name in [*DOCUMENTS, *(path.relative_to(ROOT).as_posix() for path in results)]:
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    inside = Path(config.docs_dir, page.file.src_uri).exists()
    assert not inside or page.file.src_uri == page.file.name + ".md", "the rule for links needs a flat docs/"
    text = markdown.replace("](../", "](") if inside else markdown.replace("](docs/", "](").replace("../docs/", "../")
    for mark, make in TABLES.items():
        before, found, after = text.partition(f"{mark}\n")
        text = before + make() + "\n" + after.partition("\n")[2] if found else text
    return text
