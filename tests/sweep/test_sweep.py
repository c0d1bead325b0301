"""The resumable sweep: what is kept, what is made again, and what survives a kill."""

import hashlib
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from kvguard.engine.presses import Condition
from kvguard.errors import KvguardError
from kvguard.judging.catastrophes import CatastropheParams
from kvguard.judging.judge import read_judged
from kvguard.models.load import LoadedModel
from kvguard.models.spec import ModelSpec
from kvguard.store import parts as parts_module
from kvguard.store.tables import read_metadata, read_table, read_tokens
from kvguard.sweep import make as make_module
from kvguard.sweep.plan import Sweep
from kvguard.sweep.run import run_sweep
from kvguard.sweep.settings import CompressorSpec, GenerateParams, Preset, conditions
from kvguard.tasks import make_task

SPECS = {
    "snapkv": CompressorSpec(press="SnapKVPress", params={"window_size": 16}),
    "random": CompressorSpec(press="RandomPress", params={"seed": 0}),
}


def sweep_of(folder: Path, n: int = 6, **settings: object) -> Sweep:
    return Sweep(
        name="tiny",
        spec=ModelSpec(source=f"path:{folder}", task="arithmetic"),
        task=(task := make_task("arithmetic", n_shots=1, max_new_tokens=16)),
        prompts=task.prompts(n, seed=3),
        conditions=conditions(Preset(compressors=("none", *SPECS), ratios=(0.5, 0.75))),
        compressors=SPECS,
        settings=GenerateParams.model_validate(
            {"preset": "x", "prompts_per_part": 2, "workers": 1, **settings}
        ),
        catastrophes=CatastropheParams(),
        device="cpu",
    )


def digests(folder: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.glob("*.parquet"))}


def made(before: dict[str, int], folder: Path) -> set[str]:
    return {f.name for f in folder.glob("part-*.parquet") if before.get(f.name) != f.stat().st_mtime_ns}


def times(folder: Path) -> dict[str, int]:
    return {f.name: f.stat().st_mtime_ns for f in folder.glob("part-*.parquet")}


def test_every_prompt_meets_every_condition_once(model_folder: Path, tmp_path: Path) -> None:
    sweep = sweep_of(model_folder)
    result = run_sweep(sweep, tmp_path, progress=False)
    traces, tokens = read_table("traces", result.traces), read_tokens(tmp_path)
    plan = {(p, c.compressor, c.ratio) for p in sweep.prompts["prompt_id"] for c in sweep.conditions}
    assert set(traces[["prompt_id", "compressor", "ratio"]].itertuples(index=False, name=None)) == plan
    assert len(traces) == len(plan) == len(sweep.prompts) * len(sweep.conditions)
    counted = tokens.groupby("trace_id")["token_id"].agg(list)
    assert all(counted[t.trace_id] == list(t.token_ids) for t in traces.itertuples())
    none = traces[traces["compressor"] == "none"]
    assert (none["n_kept_tokens"] == none["n_prompt_tokens"]).all()


def test_workers_write_what_one_process_writes(model_folder: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run_sweep(sweep_of(model_folder, workers=64), one, progress=False)
    finally:
        torch.set_num_threads(threads)
    run_sweep(sweep_of(model_folder, workers=2), two, progress=False)
    assert read_judged(one / "traces.parquet").equals(read_judged(two / "traces.parquet"))


def test_a_finished_sweep_makes_nothing_again(model_folder: Path, tmp_path: Path) -> None:
    first = run_sweep(sweep_of(model_folder), tmp_path, progress=False)
    before = digests(tmp_path)
    second = run_sweep(sweep_of(model_folder), tmp_path, progress=False)
    assert (first.n_made, second.n_made, second.n_kept) == (9, 0, 9)
    assert digests(tmp_path) == before


def test_a_changed_press_parameter_makes_its_parts_again_and_no_others(
    model_folder: Path, tmp_path: Path
) -> None:
    sweep = sweep_of(model_folder)
    run_sweep(sweep, tmp_path, progress=False)
    before = times(tmp_path)
    wider = {**SPECS, "snapkv": CompressorSpec(press="SnapKVPress", params={"window_size": 8})}
    run_sweep(replace(sweep, compressors=wider), tmp_path, progress=False)
    assert made(before, tmp_path) == {f"part-{b:04d}-snapkv.parquet" for b in range(3)}


def test_parts_of_other_weights_in_the_same_folder_are_never_kept(model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    run_sweep(sweep_of(folder), tmp_path / "out", progress=False)
    weights = load_file(folder / "model.safetensors")
    turned = {name: -weight if name.endswith("o_proj.weight") else weight for name, weight in weights.items()}
    save_file(turned, folder / "model.safetensors", metadata={"format": "pt"})
    again = run_sweep(sweep_of(folder), tmp_path / "out", progress=False)
    run_sweep(sweep_of(folder), tmp_path / "fresh", progress=False)
    assert (again.n_made, again.n_kept) == (9, 0)
    assert digests(tmp_path / "out") == digests(tmp_path / "fresh")


def test_compressors_and_prompts_join_a_sweep_without_touching_the_rest(
    model_folder: Path, tmp_path: Path
) -> None:
    small = replace(
        sweep_of(model_folder, n=4), conditions=[Condition("none", 0.0), Condition("random", 0.5)]
    )
    run_sweep(small, tmp_path, progress=False)
    larger = replace(sweep_of(model_folder, n=6), conditions=[*small.conditions, Condition("snapkv", 0.75)])
    assert larger.prompts["prompt_id"].iloc[:4].equals(small.prompts["prompt_id"])
    result = run_sweep(larger, tmp_path, progress=False)
    fresh = [*((b, "snapkv") for b in range(3)), (2, "none"), (2, "random")]
    assert result.n_made == len(fresh)
    whole = run_sweep(larger, tmp_path / "whole", progress=False)
    assert digests(tmp_path) == digests(tmp_path / "whole")
    assert whole.n_kept == 0


def test_parts_that_left_the_plan_are_gone(model_folder: Path, tmp_path: Path) -> None:
    sweep = sweep_of(model_folder, n=4)
    run_sweep(sweep, tmp_path, progress=False)
    run_sweep(replace(sweep, conditions=sweep.conditions[:1]), tmp_path, progress=False)
    assert {f.name for f in tmp_path.glob("part-*")} == {"part-0000-none.parquet", "part-0001-none.parquet"}
    assert len(read_tokens(tmp_path)["trace_id"].unique()) == 4


def test_a_new_detector_setting_judges_again_and_generates_nothing(
    model_folder: Path, tmp_path: Path
) -> None:
    sweep = sweep_of(model_folder, n=4)
    run_sweep(sweep, tmp_path, progress=False)
    early = replace(sweep, catastrophes=CatastropheParams(nontermination_onset=0.25))
    result = run_sweep(early, tmp_path, progress=False)
    traces = read_table("traces", result.traces)
    assert result.n_made == 0
    assert set(traces.loc[traces["stop_reason"] == "length", "onset"]) <= set(range(5))


@pytest.mark.parametrize("damage", ["truncated", "missing", "stray"])
def test_a_damaged_part_is_made_again(model_folder: Path, tmp_path: Path, damage: str) -> None:
    sweep = sweep_of(model_folder, n=2)
    run_sweep(sweep, tmp_path, progress=False)
    before = digests(tmp_path)
    victim = tmp_path / "tokens-0000-snapkv.parquet"
    if damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:200])
    elif damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes((tmp_path / "tokens-0000-random.parquet").read_bytes())
    assert run_sweep(sweep, tmp_path, progress=False).n_made == 1
    assert digests(tmp_path) == before


def let_memory_run_out(monkeypatch: pytest.MonkeyPatch, above: int, times: int) -> list[int]:
    """Let decoding more than ``above`` rows fail that many times; return the sizes that are tried."""
    tried: list[int] = []
    decode = make_module.decode

    def scarce(*args: object, batch_size: int, **kwargs: object) -> object:
        tried.append(batch_size)
        if batch_size > above and sum(size > above for size in tried) <= times:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(*args, batch_size=batch_size, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(make_module, "decode", scarce)
    return tried


def test_running_out_of_memory_halves_the_batch_and_loses_no_row(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = let_memory_run_out(monkeypatch, above=2, times=1000)
    result = run_sweep(sweep_of(model_folder, n=2, batch_size=8), tmp_path, progress=False)
    assert tried[:3] == [8, 4, 2]
    assert len(read_table("traces", result.traces)) == 10


def test_a_part_of_half_the_batch_says_so_and_is_kept(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = sweep_of(model_folder, n=4, batch_size=8)
    short, whole = tmp_path / "short", tmp_path / "whole"
    with monkeypatch.context() as patch:
        tried = let_memory_run_out(patch, above=4, times=1)
        run_sweep(sweep, short, progress=False)
    assert tried == [8, 4, *[8] * 5]
    run_sweep(sweep, whole, progress=False)
    before = digests(short)
    assert run_sweep(sweep, short, progress=False).n_made == 0, "a resumed run keeps the part"
    assert digests(short) == before
    pairs = {f.name: [read_metadata(folder / f.name) for folder in (short, whole)] for f in parts_of(short)}
    differing = {
        name for name, (a, b) in pairs.items() if a["kvguard.fingerprint"] != b["kvguard.fingerprint"]
    }
    assert len(differing) == 2, "the tables of the one part that memory ran out for"
    for name, (a, b) in pairs.items():
        rows = "4" if name in differing else "8"
        assert (a["kvguard.batch_size"], b["kvguard.batch_size"]) == (rows, "8")
    halved = run_sweep(sweep_of(model_folder, n=4, batch_size=4), short, progress=False)
    assert halved.n_kept == 0, "another plan, though one part was decoded with as many rows"


def test_a_part_of_half_the_batch_that_is_numbered_anew_still_says_so(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(
        sweep_of(model_folder, n=2, batch_size=8),
        conditions=[Condition("none", 0.0), Condition("random", 0.5)],
    )
    let_memory_run_out(monkeypatch, above=4, times=1000)
    run_sweep(small, tmp_path, progress=False)
    larger = replace(small, conditions=[*small.conditions, Condition("snapkv", 0.75)])
    result = run_sweep(larger, tmp_path, progress=False)
    assert (result.n_kept, result.n_made) == (2, 1)
    assert {read_metadata(f)["kvguard.batch_size"] for f in parts_of(tmp_path)} == {"4"}
    assert run_sweep(larger, tmp_path, progress=False).n_made == 0


def test_another_chat_template_makes_every_trace_again(model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    run_sweep(sweep_of(folder, n=2), tmp_path / "out", progress=False)
    (folder / "chat_template.jinja").write_text("Q {{ messages[0]['content'] }} A")
    again = run_sweep(sweep_of(folder, n=2), tmp_path / "out", progress=False)
    assert (again.n_made, again.n_kept) == (3, 0)
    run_sweep(sweep_of(folder, n=2), tmp_path / "fresh", progress=False)
    assert digests(tmp_path / "out") == digests(tmp_path / "fresh")


@pytest.mark.parametrize("method", ["encode", "decode"])
def test_other_code_between_text_and_tokens_makes_every_trace_again(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """The weights and the tokenizer's files are the same: only what is made of them differs."""
    sweep = sweep_of(model_folder, n=2)
    run_sweep(sweep, tmp_path, progress=False)
    before = getattr(LoadedModel, method)
    monkeypatch.setattr(LoadedModel, method, lambda loaded, given: before(loaded, given)[:-1])
    again = run_sweep(sweep, tmp_path, progress=False)
    assert (again.n_made, again.n_kept) == (3, 0)


def test_another_version_of_the_engine_makes_every_trace_again(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = sweep_of(model_folder, n=2)
    run_sweep(sweep, tmp_path, progress=False)
    monkeypatch.setattr(parts_module, "VERSION", parts_module.VERSION + 1)
    assert run_sweep(sweep, tmp_path, progress=False).n_kept == 0


def test_ratios_that_print_alike_are_not_taken_for_one_another(model_folder: Path, tmp_path: Path) -> None:
    none = Condition("none", 0.0)
    sweep = replace(sweep_of(model_folder, n=2), conditions=[none, Condition("random", 0.5)])
    run_sweep(sweep, tmp_path, progress=False)
    near = replace(sweep, conditions=[none, Condition("random", 0.50000001)])
    assert str(near.conditions[1]) == "random@0.5"
    result = run_sweep(near, tmp_path, progress=False)
    assert (result.n_made, result.n_kept) == (1, 1)


def parts_of(folder: Path) -> list[Path]:
    return sorted([*folder.glob("part-*.parquet"), *folder.glob("tokens-*.parquet")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": {"max_new_tokens": 5000}}, r"exceed the window of 2048 of model tiny; use fewer shots"),
        (
            {"compressors": {"window_size": 900}},
            r"too few for snapkv, which needs 901; fix compressors.snapkv",
        ),
        ({"spec": {"source": "path:/nowhere"}}, r"model tiny: no model lies at /nowhere"),
    ],
)
def test_what_does_not_fit_is_rejected_before_anything_is_written(
    model_folder: Path, tmp_path: Path, change: dict[str, dict[str, object]], message: str
) -> None:
    sweep = sweep_of(model_folder, n=2)
    if "task" in change:
        sweep = replace(sweep, task=sweep.task.model_copy(update=change["task"]))
    elif "spec" in change:
        sweep = replace(sweep, spec=sweep.spec.model_copy(update=change["spec"]))
    else:
        snapkv = CompressorSpec(press="SnapKVPress", params=change["compressors"])
        sweep = replace(sweep, compressors={**SPECS, "snapkv": snapkv})
    with pytest.raises(KvguardError, match=message):
        run_sweep(sweep, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_sweep import sweep_of
from kvguard.sweep.run import run_sweep
if __name__ == "__main__":
    run_sweep(sweep_of(Path(sys.argv[1]), workers=2), Path(sys.argv[2]), progress=False)
"""


@pytest.mark.parametrize("kills", [(3,), pytest.param((1, 3, 5), marks=pytest.mark.slow)], ids=str)
def test_killed_again_and_again_a_sweep_ends_with_the_same_bytes(
    model_folder: Path, tmp_path: Path, kills: tuple[int, ...]
) -> None:
    script = tmp_path / "go.py"
    script.write_text(SCRIPT)
    out, whole = tmp_path / "killed", tmp_path / "whole"
    run_sweep(sweep_of(model_folder, workers=2), whole, progress=False)
    command = [sys.executable, str(script), str(model_folder), str(out), str(Path(__file__).parent)]
    finished: dict[str, int] = {}
    for wanted in kills:  # once that many parts exist
        process = subprocess.Popen(command, start_new_session=True)
        deadline = time.monotonic() + 300  # machines are busy
        while process.poll() is None and len(list(out.glob("part-*.parquet"))) < wanted:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(0.2)  # the orphaned workers see their parent gone
        assert finished.items() <= times(out).items(), "a finished part was made again"
        finished = times(out)
    assert subprocess.run(command, check=False).returncode == 0
    assert finished.items() <= times(out).items()
    assert digests(out) == digests(whole)
    assert not [f for f in out.iterdir() if "tmp" in f.name]


def test_the_default_params_list_26_conditions() -> None:
    presets = yaml.safe_load(Path("params.yaml").read_text())["presets"]
    count = {name: len(conditions(Preset.model_validate(p))) for name, p in presets.items()}
    assert count["default"] == 26
    assert count["seed16"] == 16
    assert count["experiment-001"] == 4
