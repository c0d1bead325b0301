"""Whether lm-eval scores a served, uncompressed model as it scores the model itself.

    python -m venv lm && lm/bin/pip install 'lm-eval[api,hf]==0.4.13'
    python benchmarks/lm_eval_check.py --lm-eval lm/bin/python --model reference --documents 40

Two tasks over word problems, one multiple choice and one generative, go through lm-eval's ``hf`` backend and
through ``local-completions`` of `kvguard serve`. The log-likelihood of every choice has to agree within 1e-3,
every generated text and every metric exactly.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from kvguard.models.reference import REFERENCE_PATHS
from kvguard.tasks import sample_prompts

TOLERANCE = 1e-3  # nats
TASKS = {
    "word_choice": {
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "word_answer": {
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": ["\n\n", "Q:"], "max_gen_toks": 160, "do_sample": False},
        "filter_list": [
            {
                "name": "last",
                "filter": [
                    {"function": "regex", "regex_pattern": "#### *(-?[0-9]+)"},
                    {"function": "take_first"},
                ],
            }
        ],
        "metric_list": [{"metric": "exact_match"}],
    },
}


def write_tasks(folder: Path, n: int) -> None:
    """Write both tasks and their documents as lm-eval reads them; YAML holds JSON."""
    table = sample_prompts("arithmetic", n, 7, n_shots=2)
    documents = []
    for number, (forms, references) in enumerate(zip(table["prompt"], table["references"], strict=True)):
        answer = int(references[0])
        offered = [answer, answer + 1, answer + 10, max(0, answer - 2)]
        offered = offered[number % 4 :] + offered[: number % 4]
        choices = [f" #### {one}" for one in offered]
        gold = offered.index(answer)
        documents.append({"text": forms["text"], "choices": choices, "gold": gold, "answer": str(answer)})
    data = folder / "documents.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    for name, task in TASKS.items():
        common = {"task": name, "dataset_path": "json", "test_split": "test", "doc_to_text": "text"}
        common |= {"dataset_kwargs": {"data_files": {"test": str(data)}}, "metadata": {"version": 1}}
        (folder / f"{name}.yaml").write_text(json.dumps({**common, **task}, indent=1))


@contextmanager
def served(model: str, log: Path) -> Iterator[str]:
    """Serve a model, and say where; it logs to a file, since a pipe that nobody reads would stop it."""
    start = [sys.executable, "-c", "from kvguard.cli import main; main()", "serve"]
    with log.open("w") as told:
        process = subprocess.Popen([*start, "--model", model, "--port", "0"], stderr=told)
    try:
        while not (found := re.search(r'"listening".*"port": (\d+)', log.read_text())):
            if process.poll() is not None:
                raise click.ClickException(f"the server did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{found[1]}"
    finally:
        process.terminate()
        process.wait()


def scored(python: str, folder: Path, name: str, backend: str, arguments: dict[str, object]) -> Path:
    """Run lm-eval, and return the folder of its results."""
    out = folder / name
    given = ",".join(f"{key}={value}" for key, value in arguments.items())
    command = [python, "-m", "lm_eval", "run", "--model", backend, "--model_args", given]
    command += ["--tasks", ",".join(TASKS), "--include_path", str(folder), "--device", "cpu"]
    command += ["--batch_size", "1", "--output_path", str(out), "--log_samples"]
    begun = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(f"lm-eval with {backend} failed:\n{done.stderr[-3000:]}")
    click.echo(f"{name}: {time.monotonic() - begun:.0f} s")
    return out


def samples(out: Path, task: str) -> list[dict]:
    """Return what was answered to each document."""
    [path] = out.rglob(f"samples_{task}_*.jsonl")
    return sorted(map(json.loads, path.read_text().splitlines()), key=lambda sample: sample["doc_id"])


def metrics(out: Path, task: str) -> dict[str, float]:
    """Return the scores of a task."""
    [path] = out.rglob("results_*.json")
    found = json.loads(path.read_text())["results"][task]
    return {
        key: value
        for key, value in found.items()
        if isinstance(value, float | int) and "stderr" not in key and key != "sample_len"
    }


def likelihoods(sample: dict) -> list[float]:
    """Return the log-likelihoods of a document's choices."""
    return [float(answer[0][0]) for answer in sample["resps"]]


@click.command()
@click.option(
    "--lm-eval", "python", required=True, help="The Python of an environment that has lm-eval 0.4.13."
)
@click.option(
    "--model", default="reference", show_default=True, help="reference, reference_llama or path:DIR."
)
@click.option("--documents", type=click.IntRange(min=1), default=40, show_default=True)
def main(python: str, model: str, documents: int) -> None:
    """Compare both backends on two tasks."""
    source = str(REFERENCE_PATHS.get(model, model.removeprefix("path:")))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_tasks(folder, documents)
        hf = scored(python, folder, "hf", "hf", {"pretrained": source, "dtype": "float32"})
        with served(model, folder / "server.log") as base:
            asked = {"model": model, "base_url": f"{base}/v1/completions", "num_concurrent": 4}
            ours = scored(python, folder, "kvguard", "local-completions", asked)
        pairs = list(zip(samples(hf, "word_choice"), samples(ours, "word_choice"), strict=True))
        apart = max(abs(a - b) for pair in pairs for a, b in zip(*map(likelihoods, pair), strict=True))
        texts = zip(samples(hf, "word_answer"), samples(ours, "word_answer"), strict=True)
        other = [one["doc_id"] for one, two in texts if one["resps"] != two["resps"]]
        scores = {task: (metrics(hf, task), metrics(ours, task)) for task in TASKS}
    click.echo(f"log-likelihoods: {4 * len(pairs)}, at most {apart:.2g} nats apart")
    click.echo(f"texts: {documents}, {len(other)} differ {other or ''}")
    for task, (theirs, found) in scores.items():
        click.echo(f"{task}: hf {theirs}, kvguard {found}")
    if apart > TOLERANCE or other or any(theirs != found for theirs, found in scores.values()):
        raise click.ClickException("the served model is not scored as the model itself")


if __name__ == "__main__":
    main()
