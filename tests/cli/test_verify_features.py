"""The guard's streaming features against the pipeline's table, over the traces of a real sweep."""

import shutil

import click.testing
import numpy as np
import pytest
import yaml

from kvguard import cli as commands
from kvguard.guard.features import thinking_mask
from kvguard.models.load import load_tokenizer
from kvguard.store.tables import read_table, write_table
from kvguard.studies.catastrophes import layout
from kvguard.studies.catastrophes.featurize import featurize
from kvguard.studies.catastrophes.generate import draw_prompts, plan_sweep
from kvguard.studies.catastrophes.params import load_params
from kvguard.sweep.run import run_sweep


def kvguard(*arguments):
    return click.testing.CliRunner().invoke(commands.main, arguments)


@pytest.fixture(scope="module")
def swept(tmp_path_factory, tiny_params):
    """A repository folder with a finished sweep of 3 prompts, in two parts, and its features table."""
    folder = tmp_path_factory.mktemp("swept")
    data = tiny_params | {"generate": tiny_params["generate"] | {"prompts_per_part": 2}}
    (folder / "params.yaml").write_text(yaml.safe_dump(data))
    params = load_params(folder / "params.yaml")
    prompts = draw_prompts(params, "tiny", 3)
    write_table("prompts", prompts, folder / layout.prompts("tiny"))
    out = folder / layout.generated("tiny")
    run_sweep(plan_sweep(params, "tiny", prompts), out)
    mask = thinking_mask(load_tokenizer("tiny", params.spec("tiny")), params.featurize.thinking_words)
    table = folder / layout.features("tiny")
    featurize(out, params.task("tiny").max_new_tokens, mask, table)
    return folder


@pytest.fixture
def features(swept, tmp_path, monkeypatch):
    """The features table of a copy of it, which is the current folder."""
    shutil.copytree(swept, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return layout.features("tiny")


def test_they_are_the_same_float32_numbers_for_every_token(features, monkeypatch):
    monkeypatch.setattr("kvguard.store.tables.ROW_GROUP", 100)  # row groups and parts end in different places
    write_table("features", read_table("features", features), features)
    result = kvguard("verify", "--model", "tiny", "--features")
    assert result.exit_code == 0, result.output
    assert f"all {len(read_table('features', features))} tokens" in result.stdout


@pytest.mark.parametrize("name", ["delta_h_std_8", "rep_count_sum_8", "compression_ratio"])
def test_one_number_off_by_one_bit_is_named(features, name):
    table = read_table("features", features).copy()
    row = len(table) - 2
    table.loc[row, name] = np.nextafter(table.loc[row, name], np.float32(9))
    write_table("features", table, features)
    result = kvguard("verify", "--model", "tiny", "--features")
    assert result.exit_code == 1
    [line] = [line for line in result.stderr.splitlines() if line.startswith("Error")]
    for word in (f"trace {table['trace_id'][row]}, token {table['t'][row]}: {name}", "dvc repro featurize"):
        assert word in line


def test_missing_rows_are_noticed(features):
    table = read_table("features", features)
    write_table("features", table.iloc[:-1], features)
    result = kvguard("verify", "--model", "tiny", "--features")
    assert result.exit_code == 1
    assert "not those of the tokens" in result.stderr


def test_a_folder_without_features_is_wrong_usage(features, tmp_path):
    assert kvguard("verify", "--model", "tiny", "--features", "--data", str(tmp_path)).exit_code == 2
