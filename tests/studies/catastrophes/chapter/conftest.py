"""A small page with a trace explorer of two made-up models."""

import made_up
import pytest

from kvguard.report import page
from kvguard.studies.catastrophes.chapter import sections
from kvguard.studies.catastrophes.chapter.catalogue import tables


@pytest.fixture(scope="session")
def explorers(tmp_path_factory):
    """The explorer's data of two models."""
    names = ("one", "two")
    return [made_up.explored(tmp_path_factory.mktemp(name), name, seed)[0] for seed, name in enumerate(names)]


@pytest.fixture(scope="session")
def page_path(tmp_path_factory, explorers):
    """A whole report with made-up numbers."""
    pipeline = made_up.pipeline()
    folder = tmp_path_factory.mktemp("reports")
    path = folder / "report.html"
    chapter = sections.chapter(pipeline, tables(pipeline), explorers, [])
    path.write_text(page.render([chapter]), encoding="utf-8")
    return path
