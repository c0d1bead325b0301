"""Every mistake in params.yaml is one line that names the key, the value and the fix."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kvguard.engine.presses import Condition
from kvguard.errors import KvguardError
from kvguard.guard.controller import ControllerParams
from kvguard.studies.catastrophes.generate import draw_prompts
from kvguard.studies.catastrophes.params import Params, load_params
from kvguard.sweep.settings import Preset, conditions

PARAMS = Path(__file__).parents[1] / "params.yaml"


@pytest.fixture
def data():
    return yaml.safe_load(PARAMS.read_text())


@pytest.fixture
def load(tmp_path):
    def load(data) -> Params:
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(data))
        return load_params(path)

    return load


def put(data, key, value):
    *sections, last = key.split(".")
    for section in sections:
        data = data[section]
    data[last] = value


def test_the_shipped_params_load():
    params = load_params(PARAMS)
    assert params.spec(params.model).task == "arithmetic"
    assert params.compressors["snapkv"].press == "SnapKVPress"
    assert params.compressors["snapkv"].params == {"window_size": 16, "kernel_size": 5}


def test_the_default_sweep_has_26_conditions_and_the_first_plan_16():
    presets = load_params(PARAMS).presets
    assert len(conditions(presets["default"])) == 26
    assert len(conditions(presets["seed16"])) == 16


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("sed", 1, ["'sed'", "did you mean 'seed'"]),
        ("generate.presett", "x", ["'generate.presett'", "did you mean 'preset'"]),
        ("models.reference.sourc", "x", ["'models.reference.sourc'", "did you mean 'source'"]),
        ("validate.max_snapkv", 1, ["'validate.max_snapkv'", "max_snapkv_inside_window"]),
        ("model", "refrence", ["model", "'refrence'", "did you mean 'reference'", "reference_llama"]),
        ("transfer_to", "llama9b", ["transfer_to", "'llama9b'", "did you mean 'llama8b'"]),
        ("transfer_to", "reference", ["transfer_to", "'reference'", "name another"]),
        ("generate.preset", "defualt", ["generate.preset", "'defualt'", "did you mean 'default'", "seed16"]),
        ("presets.small.compressors", ["snapk"], ["presets.small", "'snapk'", "did you mean 'snapkv'"]),
        ("presets.small.ratios", [1.0], ["presets.small.ratios.0", "1.0", "less than 1"]),
        ("presets.small.ratios", [-0.1], ["presets.small.ratios.0", "-0.1", "greater than or equal to 0"]),
        ("presets.small.compressors", ["snapkv@1.5"], ["'snapkv@1.5'", "[0, 1)"]),
        ("presets.small.compressors", ["snapkv@half"], ["'snapkv@half'", "name@ratio"]),
        ("presets.small.ratios", [], ["presets.small", "no ratio", "ratios"]),
        ("tasks.gsm", {}, ["tasks", "'gsm'", "did you mean 'gsm8k'"]),
        ("tasks.gsm8k.n_shot", 1, ["'tasks.gsm8k.n_shot'", "did you mean 'n_shots'"]),
        ("tasks.arithmetic.source", "a.jsonl", ["unknown key 'tasks.arithmetic.source'"]),
        ("tasks.arithmetic.max_new_tokens", 0, ["tasks.arithmetic.max_new_tokens", "0", "greater than"]),
        ("tasks.gsm8k.stop_strings", [""], ["tasks.gsm8k.stop_strings.0", "at least 1 character"]),
        ("models.reference.task", "arithmetics", ["models.reference.task", "did you mean 'arithmetic'"]),
        ("sample.n", 0, ["sample.n", "0", "greater than or equal to 1"]),
        ("sample.n", "500", ["sample.n", "'500'", "integer"]),
        ("evaluate.n_trials", 0, ["evaluate.n_trials", "0"]),
        ("evaluate.balanced_fpr", 1.5, ["evaluate.balanced_fpr", "1.5"]),
        ("report.models", ["qwen4b"], ["report.models", "'qwen4b'", "qwen3b"]),
        ("train.split.train", 0.7, ["train.split", "1.1", "sum to 1"]),
        ("protocols", ["v4"], ["protocols", "'v4'", "v3"]),
        ("protocols", ["v2", "v2"], ["protocols", "twice"]),
        ("compressors.none", {"press": "KnormPress"}, ["compressors.none", "rename"]),
        ("compressors.knorm", {"n": 1}, ["missing", "compressors.knorm.press"]),
        ("compressors.knorm", {"press": "KnormPress", "compression_ratio": 0.5}, ["preset", "remove"]),
    ],
)
def test_a_mistake_is_one_line_with_key_value_and_mend(data, load, key, value, words):
    put(data, key, value)
    with pytest.raises(KvguardError) as caught:
        load(data)
    message = str(caught.value)
    assert "\n" not in message
    assert "params.yaml" in message
    for word in words:
        assert word in message


def test_an_unknown_task_is_named_where_prompts_are_drawn(data, load):
    put(data, "models.reference.task", "arithmetics")
    with pytest.raises(KvguardError, match=r"models\.reference\.task: .*did you mean 'arithmetic'"):
        draw_prompts(load(data), "reference")


def test_what_is_missing_is_an_error_only_for_who_reads_it(load):
    params = load({"seed": 3, "featurize": {}, "ablate": {"thresholds": [0.5]}})
    assert params.seed == 3
    assert params.thresholds == (0.5,)
    for read in (lambda: params.train, lambda: params.preset, lambda: params.device):
        with pytest.raises(KvguardError, match=r"params\.yaml: missing key '\S+': add it"):
            read()


def test_a_section_that_is_there_in_part_is_checked_all_the_same(load):
    with pytest.raises(KvguardError, match=r"unknown key 'train\.horizonss'; did you mean 'horizons'"):
        load({"train": {"horizonss": [3]}})


def test_an_operating_point_has_its_thresholds_in_order():
    with pytest.raises(ValueError, match=r"tau_low 0\.9 is above tau_high 0\.6: swap them"):
        ControllerParams(tau_low=0.9, tau_high=0.6, k_escalate=3, j_deescalate=8)


def test_a_missing_key_is_named(data, load):
    del data["sample"]
    with pytest.raises(KvguardError, match="missing key 'sample'"):
        load(data).sample  # noqa: B018


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "\x00"])
def test_a_file_that_holds_no_settings_is_one_line(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(KvguardError) as caught:
        load_params(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_how_to_name_another(tmp_path):
    with pytest.raises(KvguardError, match="--params"):
        load_params(tmp_path / "params.yaml")


def test_params_cannot_be_changed():
    with pytest.raises(AttributeError, match="frozen"):
        load_params(PARAMS).seed = 1


def test_the_baseline_stands_in_every_preset():
    preset = Preset(compressors=("snapkv",), ratios=(0.5,))
    assert conditions(preset) == [Condition("none", 0.0), Condition("snapkv", 0.5)]


entries = st.lists(
    st.one_of(
        st.sampled_from(["none", "a", "b"]),
        st.builds("{}@{}".format, st.sampled_from(["a", "b"]), st.sampled_from([0.25, 0.5])),
    ),
    max_size=6,
)


@given(entries, st.lists(st.sampled_from([0.25, 0.5, 0.875]), min_size=1, max_size=3))
def test_conditions_are_unique_and_hold_one_baseline(compressors, ratios):
    found = conditions(Preset(compressors=compressors, ratios=ratios))
    assert len(set(found)) == len(found)
    assert [c for c in found if c.compressor == "none"] == [Condition("none", 0.0)]


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_no_ratio_outside_its_interval_gets_in(ratio):
    if 0 <= ratio < 1:
        assert Preset(compressors=("a",), ratios=(ratio,)).ratios == (ratio,)
    else:
        with pytest.raises(ValueError, match="ratios"):
            Preset(compressors=("a",), ratios=(ratio,))
