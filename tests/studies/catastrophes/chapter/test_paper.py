"""The paper: every number is a macro, every macro has a number, and LaTeX takes it."""

import re
import shutil
from pathlib import Path

import made_up
import numpy as np
import pytest

from kvguard.errors import KvguardError
from kvguard.stats.bootstrap import Interval
from kvguard.studies.catastrophes.chapter import figures
from kvguard.studies.catastrophes.chapter.paper import build_paper, numbers_tex
from kvguard.studies.catastrophes.protocols import HEADLINE

SOURCE = Path(__file__).parents[4] / "paper" / "paper.tex"
PLOTS = (
    f"evaluate/reference-{HEADLINE}/outcome-by-ratio",
    f"evaluate/reference-{HEADLINE}/pareto",
    f"train/reference-{HEADLINE}/reliability",
    "live-validate/reference/frontier",
    "live-validate/reference/switch-time",
)


@pytest.fixture
def plots(tmp_path, monkeypatch):
    """A folder in which every figure of the paper lies, as the current folder."""
    monkeypatch.chdir(tmp_path)
    drawn = figures.state_machine(Path("plots/state-machine.png"))
    for name in PLOTS:
        path = Path(f"plots/{name}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(drawn, path)
    return tmp_path


def defined(text):
    return re.findall(r"\\def\\csname kv:(.*?)\\endcsname\{(.*)\}", text)


def test_the_text_types_no_number():
    text = SOURCE.read_text()
    prose = text[text.index(r"\begin{document}") : text.index(r"\begin{thebibliography}")]
    prose = re.sub(r"\\\w+\*?(\[[^]]*\])?\{[^{}]*\}", "", prose)  # macros with what they name
    assert re.findall(r".*\d.*", prose) == []


def test_every_macro_of_the_text_has_a_number(plots):
    text = SOURCE.read_text()
    names = {name for name, _ in defined(numbers_tex(made_up.pipeline(), text))}
    kinds = "percent|points|fraction|decimal|whole|compared|setting|fact|drawn"
    body = text[text.index(r"\begin{document}") :]
    used = {
        f"{kind}:{name}" for kind, name in re.findall(rf"\\({kinds})(?:\[[^]]*\])?\{{([^{{}}]+)\}}", body)
    }
    assert used <= names
    assert len(used) > 40


def test_a_macro_holds_the_number_of_the_results(plots):
    pipeline = made_up.pipeline()
    value = pipeline.numbers.get("measure", "reference_llama", "", "outcomes", "overall", "cbr").value * 100
    (name, written), *_ = defined(numbers_tex(pipeline, r"\percent{measure/other//outcomes/overall/cbr}"))
    assert name == "percent:measure/other//outcomes/overall/cbr"
    assert written == rf"{value:.1f}~\%~[{value - 5:.1f},~{value + 5:.1f}]"


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (Interval(0.2, 0.1, 0.3), "higher than"),
        (Interval(-0.2, -0.3, -0.1), "lower than"),
        (Interval(0.2, -0.1, 0.3), "not distinguishable from"),
        (Interval(np.nan, np.nan, np.nan), "not distinguishable from"),
    ],
)
def test_a_word_of_comparison_follows_the_interval(found, word):
    frame = made_up.results("measure", "reference")
    chosen = (frame["table"] == "onset_entropy") & (frame["metric"] == "difference")
    frame.loc[chosen, ["value", "low", "high"]] = [found.value, found.low, found.high]
    text = r"\compared{measure/main//onset_entropy/overall/difference}"
    assert defined(numbers_tex(made_up.pipeline(frame), text))[0][1] == word


@pytest.mark.parametrize(
    ("macro", "words"),
    [
        (r"\percent{measure/main//outcomes/overall/cbrr}", ["cbrr", "outcomes/overall/cbr)"]),
        (r"\setting{sample.m}", ["sample.m", "params.yaml"]),
        (r"\fact{weather}", ["weather", "conditions"]),
        (r"\drawn{plots/none.png}", ["plots/none.png", "dvc repro"]),
    ],
)
def test_a_macro_without_a_number_is_one_line(macro, words):
    with pytest.raises(KvguardError) as error:
        numbers_tex(made_up.pipeline(), macro)
    assert len(str(error.value).splitlines()) == 1
    for word in words:
        assert word in str(error.value)


def test_stages_that_were_not_run_stop_the_paper(plots):
    with pytest.raises(KvguardError, match="dvc repro"):
        build_paper(made_up.pipeline(made_up.results("measure", "reference")), SOURCE, plots / "build")


needs_latex = pytest.mark.skipif(
    shutil.which("pdflatex") is None,
    reason="no pdflatex: apt-get install texlive-latex-recommended",
)


@needs_latex
def test_the_paper_compiles_and_nothing_of_an_earlier_build_survives(plots):
    folder = plots / "build"
    folder.mkdir()
    (folder / "numbers.tex").write_text("stale")
    (folder / "stale.pdf").write_text("stale")
    pdf = build_paper(made_up.pipeline(), SOURCE, folder)
    assert pdf.read_bytes().startswith(b"%PDF")
    assert not (folder / "stale.pdf").exists()
    assert "undefined" not in (folder / "paper.log").read_text(errors="replace")


@needs_latex
def test_a_mistake_in_the_text_is_one_line(tmp_path):
    source = tmp_path / "paper.tex"
    source.write_text("\\documentclass{article}\n\\begin{document}\n\\nonsense\n\\end{document}\n")
    with pytest.raises(KvguardError, match=r"paper\.tex:3: Undefined control sequence") as error:
        build_paper(made_up.pipeline(), source, tmp_path / "build")
    assert len(str(error.value).splitlines()) == 1


def test_without_latex_it_says_what_to_install(plots, monkeypatch):
    monkeypatch.setenv("PATH", str(plots))
    with pytest.raises(KvguardError, match="apt-get install texlive"):
        build_paper(made_up.pipeline(), SOURCE, plots / "build")
