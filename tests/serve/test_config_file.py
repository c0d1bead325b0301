"""`kvguard serve --config FILE`: what the command line can say, and nothing that it cannot."""

import importlib
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from kvguard.cli import main
from kvguard.serve import front, start

module = importlib.import_module("kvguard.cli.serve")  # the name in kvguard.cli is the command
DOCS = Path(__file__).parents[2] / "docs" / "server.md"
EVERYTHING = {
    "model": "reference",
    "dtype": "float32",
    "device": "cpu",
    "params": "params.yaml",
    "adapter": "embedded:smollm135m_gsm8k",
    "served_name": "mine",
    "compressor": "snapkv",
    "ratio": 0.75,
    "guard": "models/reference",
    "action": "rollback",
    "point": "aggressive",
    "policy": "certificate.json",
    "hold_back": 0,
    "allow_kv": True,
    "kv_memory": "1.5GiB",
    "max_model_len": 512,
    "max_rows": 4,
    "max_queue": 7,
    "prefill_tokens": 64,
    "request_timeout": 2,
    "max_requests_per_key": 3,
    "max_body": 4096,
    "replicas": 1,
    "host": "0.0.0.0",
    "port": 8080,
    "api_key_env": "MY_KEYS",
    "log_text": True,
}


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Run the command with a file of settings; return its outcome, and with what it would have started."""
    monkeypatch.setenv("MY_KEYS", "a,b")
    monkeypatch.delenv("KVGUARD_API_KEY", raising=False)
    found = []
    monkeypatch.setattr(module, "_served", lambda asked, how: (asked, how))
    for where in (start, front):
        monkeypatch.setattr(where, "run", lambda *arguments: found.append(arguments))

    def invoke(text, *arguments):
        path = tmp_path / "serve.yaml"
        path.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
        done = CliRunner().invoke(main, ["serve", "--config", str(path), *arguments])
        return done, found.pop() if found else None

    return invoke


def typed(settings):
    for key, value in settings.items():
        option = f"--{key.replace('_', '-')}"
        yield from [option] if value is True else [option, str(value)]


def test_the_file_may_hold_every_option_and_means_what_the_command_line_means(started):
    names = {name for option in module.serve.params for name in option.opts if name.startswith("--")}
    assert names - {"--config", "--api-key-file"} == {f"--{key.replace('_', '-')}" for key in EVERYTHING}
    done, from_file = started(EVERYTHING)
    assert done.exit_code == 0, done.output
    _, from_line = started({"model": "another"}, *typed(EVERYTHING))
    assert from_file == from_line
    (_, how), host, port, keys, log_text = from_file
    assert (host, port, keys, log_text) == ("0.0.0.0", 8080, ["a", "b"], True)
    assert how["kv_memory"] == 3 * 2**29


def test_the_command_line_goes_before_the_file(started):
    _, ((asked, how), _, port, *_) = started(EVERYTHING, "--ratio", "0.5", "--port", "9", "--no-allow-kv")
    assert (how["ratio"], port, how["allow_kv"]) == (0.5, 9, False)
    assert (asked.model, how["compressor"]) == ("reference", "snapkv")


def test_the_limits_of_several_replicas_are_those_of_one(started):
    done, (load, replicas, limits, host, port, keys, log_text) = started({**EVERYTHING, "replicas": 3})
    assert done.exit_code == 0, done.output
    assert (replicas, host, port, keys, log_text) == (3, "0.0.0.0", 8080, ["a", "b"], True)
    assert (limits.kv_bytes, limits.rows, limits.body, limits.per_key) == (3 * 2**29, 4, 4096, 3)
    asked, how = load()
    assert (asked.model, how["ratio"]) == ("reference", 0.75)


def test_where_both_say_nothing_the_usual_holds(started):
    _, ((_, how), host, port, keys, log_text) = started({"model": "reference"})
    assert (host, port, keys, log_text) == ("127.0.0.1", 8000, [], False)
    assert (how["max_rows"], how["max_body"], how["allow_kv"]) == (32, 4 << 20, False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prt: 9", "unknown name 'prt'; did you mean 'port'?"),
        ("max-rows: 9", "unknown name 'max-rows'; did you mean 'max_rows'?"),
        ("config: other.yaml", "unknown name 'config'"),
        ("true: 1", "unknown name 'True'"),
        ("3: 1", "unknown name '3'"),
        ("port: 80.5", "port: '80.5' is not"),
        ("port: 70000", "port: 70000 is not in the range"),
        ("ratio: 1", "ratio: 1.0 is not in the range"),
        ("ratio: yes", "ratio: True is no value of it"),
        ("max_rows: on", "max_rows: True is no value of it"),
        ("allow_kv: 1", "allow_kv: 1 is not true or false"),
        ("kv_memory: lots", "kv_memory: 'lots' is no size"),
        ("action: hold", "action: 'hold' is not one of"),
        ("guard: [a, b]", "guard: give one value"),
        ("compressor:", "compressor: give one value"),
        ("compressor: {name: snapkv}", "compressor: give one value"),
        ("a: b: c", "not YAML"),
        ("- model", "holds no settings"),
        ("", "holds no settings"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_file_and_the_key(started, text, said):
    done, ran = started(text)
    [line] = done.output.strip().splitlines()
    assert done.exit_code == 1
    assert re.match(r"Error: \S+serve\.yaml: ", line)
    assert said in line
    assert ran is None


@pytest.mark.parametrize(
    "key", ["api_key", "api_keys", "key", "KVGUARD_API_KEY", "hf_token", "password", "secret"]
)
def test_secrets_are_refused_and_never_shown(started, key):
    done, ran = started(f"model: reference\n{key}: sk-hidden")
    assert "do not belong in a file" in done.output
    assert "sk-hidden" not in done.output
    assert ran is None


@pytest.mark.parametrize("place", ["file", "line"])
def test_a_key_where_a_variable_is_named_is_not_shown(started, place):
    text, line = ("api_key_env: sk-hidden", []) if place == "file" else ("", ["--api-key-env", "sk-hidden"])
    done, _ = started(f"model: reference\n{text}", *line)
    assert done.exit_code == 2
    assert "not a key" in done.output
    assert "sk-hidden" not in done.output


def test_a_file_that_is_not_there_is_told():
    done = CliRunner().invoke(main, ["serve", "--config", "/nonexistent.yaml"])
    assert done.exit_code == 2
    assert "'/nonexistent.yaml' does not exist" in done.output


def test_the_example_of_the_documentation_is_taken(started):
    [example] = re.findall(r"^```yaml\n(.*?)^```$", DOCS.read_text(encoding="utf-8"), re.M | re.S)
    done, ran = started(example)
    assert done.exit_code == 0, done.output
    assert ran is not None


def test_a_bound_for_each_key_needs_keys(started):
    done, _ = started({"model": "reference", "max_requests_per_key": 2})
    assert done.exit_code == 2
    assert "--max-requests-per-key needs API keys" in done.output
