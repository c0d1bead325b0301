"""`kvguard instructions`, as it is typed: what is wrong is one line, and a run ends in a report."""

import json

import pytest
from click.testing import CliRunner

from kvguard.cli import main


def typed(*words):
    return CliRunner().invoke(main, ["instructions", *words])


BAD = [
    (["--conditions", "snapkvv@0.5"], "did you mean 'snapkv'"),
    (["--conditions", "snapkv@1.5"], "no share to remove"),
    (["--suite", "ifevall"], "did you mean 'ifeval'"),
    (["--suite", "ifeval", "--suite-path", "gone.jsonl"], "gone.jsonl"),
    (["--conditions", "cap@0.5", "--guard", "rollback"], "--bundle"),
    (["--settings", "gone.yaml"], "gone.yaml"),
    (["--settings", "odd.yaml"], "odd.yaml: unknown key 'conditons'; did you mean 'conditions'?"),
    (["--settings", "treated.yaml"], "treatments.0: 'faire'"),
]


@pytest.mark.parametrize(("words", "said"), BAD, ids=lambda value: str(value)[:40])
def test_what_is_wrong_is_said_in_one_line_before_a_model_is_loaded(
    words, said, model_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.yaml").write_text("conditons: [snapkv@0.5]\n")
    (tmp_path / "treated.yaml").write_text("treatments: [faire]\n")

    def never(*_):
        raise AssertionError("loaded")

    monkeypatch.setattr("kvguard.models.load.load_model", never)
    done = typed("--model", f"path:{model_folder}", *words)
    assert done.exit_code == 1, done.output
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert said in line
    assert done.stderr.rstrip().endswith(line)


def test_a_run_ends_in_a_report_and_is_gone_on_with(model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        {
            "key": number,
            "prompt": f"Tell of {word}. Do not use any commas in your response.",
            "instruction_id_list": ["punctuation:no_comma"],
            "kwargs": [{}],
        }
        for number, word in enumerate(("a fox", "hens", "some owls"))
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = f"--model path:{model_folder} --suite ifeval --suite-path own.jsonl --max-new-tokens 8".split()
    words += ["--out", "out", "--protect", "instructions"]
    first = typed(*words, "-n", "2")
    assert first.exit_code == 0, first.output
    assert "10 results made, 0 kept" in first.stdout
    assert "[10/10] " in first.stderr
    written = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    assert all(row["n_tokens"] <= 8 for row in written if "n_tokens" in row)
    assert any("n_tokens" in row for row in written)
    second = typed("run", *words, "-n", "3")
    assert "5 results made, 10 kept" in second.stdout
    assert json.loads((tmp_path / "out/metrics.json").read_text())["followed"]["baseline"]["n"]["value"] == 3
    page = (tmp_path / "out/report.html").read_text()
    assert "Does the strategy matter?" in page
    assert "streaming_llm@0.5+protected:instructions" in page
    again = typed("report", "out", "--resamples", "100")
    assert again.exit_code == 0, again.output
    other = typed(*words, "-n", "3", "--seed", "4")
    assert other.exit_code == 1
    assert "made with seed 17, not 4" in other.stderr
    none = typed("report", str(tmp_path))
    assert "holds no results" in none.stderr
