"""Builds the site from docs/ and from the repository's own documents, and fills in the settings.

Documents outside of docs/ keep their paths in the site, so that links between them hold. A link from docs/ to one of
them begins with `../`, and a link back with `docs/`; both are right in a checkout and are shortened here for the site.
"""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from capo_fast.config.help import docstrings
from capo_fast.config.load import DEFAULT_FILE, TYPES, build_config, config_as_dict, flatten, read_file, wanted
from capo_fast.config.schema import Config

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["BENCHMARKS.md", "CHANGELOG.md", "CONTRIBUTING.md", "kernels/README.md", "bench/NOTES.md"]
SHOWN = (".md", ".json", ".png", ".svg")
"""Kinds of files under bench/results/ that pages link to."""
SETTINGS = "<!-- settings -->"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    results = sorted(path for path in (ROOT / "bench/results").rglob("*") if path.suffix in SHOWN)
    for name in [*DOCUMENTS, *(path.relative_to(ROOT).as_posix() for path in results)]:
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    inside = Path(config.docs_dir, page.file.src_uri).exists()
    markdown = markdown.replace("](../", "](") if inside else markdown.replace("](docs/", "](")
    return markdown.replace(SETTINGS, settings()) if SETTINGS in markdown else markdown


def settings() -> str:
    """A table of settings for each section of the configuration, in Markdown."""
    paper, tiny = flatten(config_as_dict(Config())), flatten(config_as_dict(build_config(read_file(DEFAULT_FILE))))
    lines, section = [], None
    for key, kind in TYPES.items():
        if key.rpartition(".")[0] != section:
            section = key.rpartition(".")[0]
            lines += [
                "",
                f"## {section or 'General'}",
                "",
                "| setting | type | default | tiny.yaml | |",
                "|---|---|---|---|---|",
            ]
        other = "" if tiny[key] == paper[key] else f"`{_shown(tiny[key])}`"
        cells = [f"`{key}`", wanted(kind), f"`{_shown(paper[key])}`", other, docstrings()[key]]
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines)


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
