"""Loading models: what is rejected, in which words, and what tells one model from another."""

import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from transformers import AutoConfig, PretrainedConfig

from kvguard.engine.loop import decode
from kvguard.engine.oracle import kvpress_generate
from kvguard.engine.prefill import full_cache, prefill
from kvguard.engine.requests import Decoding, Row
from kvguard.errors import KvguardError
from kvguard.models import availability
from kvguard.models.availability import check_available, pick_device, weight_bytes
from kvguard.models.load import load_model
from kvguard.models.spec import ModelSpec
from kvguard.studies.catastrophes.params import load_params

NOBODY = "http://127.0.0.1:9"  # the discard port: nothing answers


def spec(source: str, **changes: str | bool) -> ModelSpec:
    return ModelSpec.model_validate({"source": source, "task": "arithmetic", **changes})


def rejection(model: ModelSpec) -> str:
    with pytest.raises(KvguardError) as caught:
        check_available("m", model, "cpu")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("model m: ")
    return message


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, tuple[int, str]]]:
    """A hub on this machine: maps the end of a path to the status and error code it answers with."""
    answers: dict[str, tuple[int, str]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, code = next((a for end, a in answers.items() if self.path.endswith(end)), (200, ""))
            body = b'{"id": "some/model"}'
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield answers
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("end", "answer", "fix"),
    [
        ("auth-check", (403, "GatedRepo"), "is gated: .*https://huggingface.co/some/model and set HF_TOKEN"),
        (
            "auth-check",
            (401, "RepoNotFound"),
            "the hub has no some/model.*fix models.m.source, set HF_TOKEN",
        ),
        ("v9", (404, "RevisionNotFound"), "has no revision 'v9': fix models.m.revision"),
        ("auth-check", (500, ""), r"cannot be reached \(HfHubHTTPError\): connect.*path:/some/dir"),
    ],
)
def test_what_the_hub_rejects_names_the_mend(
    hub: dict[str, tuple[int, str]], end: str, answer: tuple[int, str], fix: str
) -> None:
    hub[end] = answer
    with pytest.raises(KvguardError, match=fix):
        check_available("m", spec("some/model", revision="v9"), "cpu")


def test_no_network_is_said_at_once_and_names_a_local_copy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", NOBODY)
    message = rejection(spec("some/model"))
    assert "not cached and the hub cannot be reached" in message
    assert "path:/some/dir" in message


def test_a_missing_local_model_names_the_folder(tmp_path: Path) -> None:
    assert f"no model lies at {tmp_path}" in rejection(spec(f"path:{tmp_path}"))


@pytest.mark.parametrize("content", ["{", "{}", '{"model_type": "unheard_of"}'])
def test_a_damaged_configuration_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    assert "cannot be loaded" in rejection(spec(f"path:{tmp_path}"))


def test_damaged_weights_are_one_line(model_copy: Path) -> None:
    (model_copy / "model.safetensors").write_bytes(b"\0" * 99)
    with pytest.raises(KvguardError, match=r"^model m: .*cannot be loaded \([^\n]*$"):
        load_model("m", spec(f"path:{model_copy}"), "cpu")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model": {}}', "\0"])
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_a_damaged_file_of_a_model_gives_a_model_or_one_line(
    model_copy: Path, file: str, content: str
) -> None:
    (model_copy / file).write_text(content)
    line = "model m: 'path' cannot be loaded"
    try:
        load_model("m", spec(f"path:{model_copy}"), "cpu").warn_of_doubts()
    except KvguardError as error:
        line = str(error)
    assert line.startswith("model m: ")
    assert "\n" not in line


@pytest.mark.parametrize(
    ("form", "fix"),
    [
        ({}, "set models.m.dtype: bfloat16"),
        ({"dtype": "bfloat16"}, "set models.m.quantisation: nf4"),
    ],
)
def test_a_model_larger_than_the_memory_is_rejected_with_a_smaller_form(
    monkeypatch: pytest.MonkeyPatch, form: dict[str, str], fix: str
) -> None:
    monkeypatch.setattr(availability, "free_bytes", lambda device: 1000)
    message = rejection(spec("embedded:qwen2", **form))
    assert "GiB is free on cpu" in message
    assert fix in message


def gemma12b() -> PretrainedConfig:
    text = {
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "vocab_size": 262208,
    }
    vision = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "image_size": 896}
    return AutoConfig.for_model("gemma3", text_config=text, vision_config=vision)


def test_the_weights_of_gemma_12b_take_7_gb_in_four_bits_and_24_in_bfloat16() -> None:
    config = gemma12b()
    assert weight_bytes(config, "bfloat16", "nf4") / 1e9 == pytest.approx(8, abs=1)
    assert weight_bytes(config, "bfloat16", "none") / 1e9 == pytest.approx(24.4, abs=0.5)


def test_predicted_weights_are_those_of_the_loaded_model() -> None:
    model = load_model("m", spec("embedded:llama"), "cpu").model
    assert weight_bytes(model.config, "float32", "none") == model.get_memory_footprint(return_buffers=False)


def test_four_bits_without_bitsandbytes_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "find_spec", lambda name: None)
    assert "pip install 'kvguard[nf4]'" in rejection(spec("embedded:qwen2", quantisation="nf4"))


def test_a_reference_model_generates_from_four_bits_as_kvpress_does() -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes, the extra nf4, is not installed")
    full = load_model("m", spec("embedded:qwen2"), "cpu")
    packed = load_model("m", spec("embedded:qwen2", quantisation="nf4"), "cpu")
    assert packed.fingerprint != full.fingerprint
    predicted = weight_bytes(full.model.config, "float32", "nf4")
    assert packed.model.get_memory_footprint(return_buffers=False) == pytest.approx(predicted, rel=0.1)
    ids = torch.tensor(full.encode("Q: Ana has 3 pens and finds 4 pens. How many pens does Ana have now?"))
    reference = kvpress_generate(packed.model, ids, None, 16, packed.eos_ids)
    done = prefill(packed.model, ids, {None: None}, "sdpa")  # type: ignore[dict-item]
    row = Row(ids, done.logits, done.kept[None])  # type: ignore[index]
    got = decode(packed.model, [row], Decoding(16, packed.eos_ids), batch_size=1)
    assert reference.agrees(got.token_ids[0, : got.lengths[0]].tolist())


@pytest.fixture
def model_copy(tiny_models: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_models["tiny"], tmp_path / "copy"))


def test_a_model_is_told_whether_its_steps_may_be_recorded() -> None:
    usual, kept = (load_model("m", spec("embedded:qwen2", **c), "cpu") for c in ({}, {"cuda_graphs": False}))
    assert (usual.model.cuda_graphs, kept.model.cuda_graphs) == (True, False)
    assert usual.fingerprint != kept.fingerprint  # other kernels, other bytes


def test_the_content_of_a_local_model_is_its_fingerprint_and_its_place_is_not(
    tiny_models: dict[str, Path], model_copy: Path
) -> None:
    here, there = (load_model("m", spec(f"path:{p}"), "cpu") for p in (tiny_models["tiny"], model_copy))
    assert here.fingerprint == there.fingerprint
    weights = model_copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    changed = load_model("m", spec(f"path:{model_copy}"), "cpu").fingerprint
    assert changed != here.fingerprint
    (model_copy / "merges.txt").write_text("a b")  # some tokenizers are kept in text files
    assert load_model("m", spec(f"path:{model_copy}"), "cpu").fingerprint != changed


@pytest.mark.parametrize(("attention", "used"), [("auto", "sdpa"), ("sdpa", "sdpa"), ("eager", "eager")])
def test_dtype_and_attention_are_those_of_the_entry(attention: str, used: str) -> None:
    model = load_model("m", spec("embedded:llama", dtype="bfloat16", attention=attention), "cpu").model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    seen = set()
    hook = model.register_forward_pre_hook(lambda module, _: seen.add(module.config._attn_implementation))
    full_cache(model, torch.arange(2, 20))
    hook.remove()
    assert seen == {used}


def test_the_shipped_registry_has_the_models_that_are_promised() -> None:
    models = load_params().models
    promised = {"reference", "reference_llama", "qwen3b", "qwen7b", "llama8b", "gemma12b", "local"}
    assert promised <= set(models)
    assert models["gemma12b"].quantisation == "nf4"


@pytest.mark.parametrize(
    ("cuda", "mps", "picked"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_takes_cuda_before_mps_before_cpu(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, picked: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device("auto").type == picked
    assert pick_device("cpu").type == "cpu"
    if not cuda:
        with pytest.raises(KvguardError, match="device: 'cuda' is not available here; use auto or cpu"):
            pick_device("cuda")


def test_a_prompt_goes_through_the_chat_template_where_there_is_one(tiny_models: dict[str, Path]) -> None:
    chat, plain = (load_model("m", spec(s), "cpu") for s in ("embedded:qwen2", f"path:{tiny_models['tiny']}"))
    text = chat.tokenizer.decode(chat.encode("Q: 1 + 1?"))
    assert "Q: 1 + 1?" in text
    assert text.endswith("<|assistant|>")
    assert plain.tokenizer.decode(plain.encode("Q: 1 + 1?")) == "Q: 1 + 1?"


def test_a_prompt_of_two_forms_is_asked_in_the_one_that_the_model_knows(tiny_models: dict[str, Path]) -> None:
    chat, plain = (load_model("m", spec(s), "cpu") for s in ("embedded:qwen2", f"path:{tiny_models['tiny']}"))
    prompt = {"messages": [{"role": "user", "content": "Q: 1 + 1?"}], "text": "Q: 1 + 1?\nA:"}
    assert chat.encode(prompt) == chat.encode("Q: 1 + 1?")
    assert plain.tokenizer.decode(plain.encode(prompt)) == "Q: 1 + 1?\nA:"
