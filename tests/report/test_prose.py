import json

import pytest
from click.testing import CliRunner

from kvguard.cli import main
from kvguard.errors import KvguardError
from kvguard.report.prose import Prose

CBR = "measure/m/outcomes/overall/cbr"


@pytest.fixture
def root(tmp_path):
    metrics = {
        "outcomes": {
            "overall": {
                "cbr": {"value": 0.41742, "low": 0.41, "high": 0.4249},
                "sure": {"value": 1.0, "low": 1.0, "high": 1.0},
                "unknown": {"value": None, "low": None, "high": None},
                "worse": {"value": 0.02, "low": 0.01, "high": 0.03},
                "better": {"value": -0.02, "low": -0.03, "high": -0.01},
                "same": {"value": -0.00001, "low": -0.01, "high": 0.01},
            },
            "a@0.5": {"cbr": {"value": 0.5, "low": None, "high": None}},
        },
        "n_tokens": 1867976,
    }
    (tmp_path / "metrics" / "measure").mkdir(parents=True)
    (tmp_path / "metrics" / "measure" / "m.json").write_text(json.dumps(metrics))
    (tmp_path / "docs" / "outputs").mkdir(parents=True)
    (tmp_path / "docs" / "measured.yaml").write_text("tests: {value: 1232}\nspeed: {value: 22.8}\n")
    (tmp_path / "docs" / "outputs" / "say.txt").write_text("$ echo hello\nold\n")
    return tmp_path


def filled(root, text):
    document = root / "README.md"
    document.write_text(text)
    return Prose(root).fill(document)


def value(root, template):
    head = f"x <!-- run {template} -->"
    text = filled(root, f"{head}?<!-- /run --> y")
    assert text.startswith(head)
    assert text.endswith("<!-- /run --> y")
    return text[len(head) : -len("<!-- /run --> y")]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (f'{{{{ fraction("{CBR}") }}}}', "0.417 [0.410, 0.425]"),
        (f'{{{{ fraction("{CBR}", interval=False) }}}}', "0.417"),
        (f'{{{{ percent("{CBR}") }}}}', "41.7 % [41.0, 42.5]"),
        (f'{{{{ points("{CBR}", interval=False) }}}}', "41.7 points"),
        (f'{{{{ decimal("{CBR}", interval=False) }}}}', "0.42"),
        ('{{ fraction("measure/m/outcomes/a@0.5/cbr") }}', "0.500"),
        (f'{{{{ known("{CBR}") }}}}', "True"),
        (
            '{{ known("measure/m/outcomes/overall/cfr") }} {{ known("measure/other/outcomes") }}',
            "False False",
        ),
        ('{{ fraction("measure/m/outcomes/overall/sure") }}', "1.000"),
        ('{{ fraction("measure/m/outcomes/overall/unknown") }}', "–"),
        ('{{ fraction("measure/m/outcomes/overall/same", interval=False) }}', "0.000"),
        ('{{ whole("measure/m/n_tokens") }}', "1,867,976"),
        ('{{ measured("tests") }} {{ measured("speed") }}', "1,232 22.8"),
        ('{{ subjects("measure/m/outcomes") | join(" ") }}', "overall a@0.5"),
        ('{{ compared("measure/m/outcomes/overall/worse") }}', "higher than"),
        ('{{ compared("measure/m/outcomes/overall/better") }}', "lower than"),
        ('{{ compared("measure/m/outcomes/overall/same") }}', "not distinguishable from"),
    ],
)
def test_a_name_becomes_its_number(root, template, text):
    assert value(root, template) == text


def test_a_template_of_lines_fills_lines_and_is_kept(root):
    template = (
        '<!-- run\n| a |\n{% for s in subjects("measure/m/outcomes") %}\n| {{ s }} |\n{% endfor %}\n-->\n'
    )
    text = filled(root, f"{template}old\nlines\n<!-- /run -->\nafter\n")
    assert text == f"{template}| a |\n| overall |\n| a@0.5 |\n<!-- /run -->\nafter\n"
    assert filled(root, text) == text  # filling again changes nothing


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('x <!-- run {{ fraction("measure/m/outcomes/overall/cbt") }} --><!-- /run -->', "nearest is cbr"),
        ('x <!-- run {{ fraction("train/m/a") }} --><!-- /run -->', "train/m.json does not exist"),
        ('x <!-- run {{ fraction("measure/m/outcomes/overall") }} --><!-- /run -->', "no number"),
        ('x <!-- run {{ measured("speeed") }} --><!-- /run -->', "nearest is speed"),
        ("x <!-- run {{ nonsense }} --><!-- /run -->", "nonsense"),
        ("x <!-- run {{ --><!-- /run -->", "fix the template"),
        ("x <!-- run {{ 1 }} -->1", "not closed"),
        ("<!-- run {{ 1 }} -->1<!-- /run -->", "begins a line"),
    ],
)
def test_a_mistake_in_a_document_is_one_line(root, text, message):
    with pytest.raises(KvguardError, match=message) as raised:
        filled(root, text)
    assert "\n" not in str(raised.value)


def test_a_number_stands_in_one_place(root):
    prose = Prose(root)
    block = f'x <!-- run {{{{ fraction("{CBR}") }}}} --><!-- /run -->'
    for name in ("README.md", "docs/results.md"):
        (root / name).write_text(block)
    prose.fill(root / "README.md")
    with pytest.raises(KvguardError, match=r"stands in .*README\.md already"):
        prose.fill(root / "docs" / "results.md")


def run(root, *arguments):
    return CliRunner().invoke(main, ["numbers", "--root", str(root), *arguments])


def test_check_fails_until_the_documents_are_filled(root):
    readme = root / "README.md"
    readme.write_text('x <!-- run {{ measured("tests") }} -->1,124<!-- /run -->')
    assert "README.md: disagrees with the last run" in run(root, "--check").output
    assert "1,124" in readme.read_text()
    assert run(root).exit_code == 0
    assert run(root, "--check").exit_code == 0
    assert "1,232" in readme.read_text()


def test_figures_of_the_run_are_copied_beside_the_documents(root):
    (root / "README.md").write_text('<!-- run\n{{ picture("plots/a/f.png", "F") }}\n-->\n<!-- /run -->\n')
    assert run(root).exit_code == 0  # on a fresh clone there are no plots
    (root / "plots" / "a").mkdir(parents=True)
    (root / "plots" / "a" / "f.png").write_bytes(b"drawn")
    assert run(root, "--check").exit_code == 1
    run(root)
    assert (root / "docs" / "f.png").read_bytes() == b"drawn"
    assert "![F](docs/f.png)" in (root / "README.md").read_text()
    assert run(root, "--check").exit_code == 0


def test_rerun_keeps_what_a_command_prints_now(root):
    (root / "README.md").write_text('<!-- run\n{{ output("say") }}\n-->\n<!-- /run -->\n')
    assert run(root, "--rerun").exit_code == 0
    assert (root / "docs" / "outputs" / "say.txt").read_text() == "$ echo hello\nhello\n"
    assert "$ echo hello\nhello\n<!-- /run -->" in (root / "README.md").read_text()


def test_a_command_that_fails_keeps_its_old_output(root):
    (root / "README.md").write_text("x")
    output = root / "docs" / "outputs" / "say.txt"
    output.write_text("$ ls --no-such-option\nold\n")
    done = run(root, "--rerun")
    assert done.exit_code == 1
    assert "fails" in done.output
    assert output.read_text().endswith("old\n")
