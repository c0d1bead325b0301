"""Encoder-decoders: what is scored is what the model itself says, with the prefix hidden from its decoder."""

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

from kvguard.errors import KvguardError
from kvguard.models.spec import ModelSpec
from kvguard.studies.directed.encdec.setting import Setting
from kvguard.studies.directed.params import load_params
from kvguard.studies.directed.run import cells_of
from kvguard.studies.directed.sources import open_dataset
from kvguard.studies.directed.tracks import TRACKS, Cell, Opening

T5 = {"d_model": 32, "d_ff": 48, "num_layers": 2, "num_heads": 2, "d_kv": 16, "dropout_rate": 0.0}
BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 512,
    "init_std": 0.2,
    "bos_token_id": 0,
}
TEN = [f"encdec-{n:02}" for n in range(1, 11)]


@pytest.fixture(scope="session")
def encoder_decoders(tiny_models, tmp_path_factory):
    """A random T5 and a random BART with the byte tokenizer of the tiny models."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_models["tiny"])
    common = {"vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    made = {
        "t5": T5ForConditionalGeneration(T5Config(**T5, **common, initializer_factor=3.0)),
        "bart": BartForConditionalGeneration(BartConfig(**BART, **common, forced_eos_token_id=None)),
    }
    folders = {}
    for name, model in made.items():
        folders[name] = tmp_path_factory.mktemp(name)
        model.eval().save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


@pytest.fixture(params=["t5", "bart"])
def opened(request, encoder_decoders, settings, tmp_path):
    params = load_params(settings)

    def open_track(experiment="encdec-01", model=request.param, **changes):
        protocol = params.protocol(experiment)
        if "models" in protocol.options:  # the other model is here the same kind's second copy
            path = f"path:{encoder_decoders[request.param]}"
            changes = {"options": {"models": dict.fromkeys(protocol.options["models"], path)}, **changes}
        protocol = protocol.model_copy(update=changes)
        name, where = params.dataset("small")
        dataset = open_dataset(name, where, params.seed)
        spec = ModelSpec(source=f"path:{encoder_decoders[model]}", task="gsm8k")
        opening = Opening(experiment, model, spec, params, protocol, dataset, tmp_path / model)
        return TRACKS[protocol.track](opening), dataset, protocol

    return open_track


def rows_of(opened, experiment, n=6, **changes):
    track, dataset, protocol = opened(experiment, **changes)
    with track as bench:
        rows = bench.rows(dataset.examples[:n], cells_of(protocol))
    return {(row.example, row.cell): row for row in rows}


def test_the_nll_is_that_of_the_model_itself_with_the_prefix_hidden(opened):
    track, dataset, _ = opened("encdec-01")
    example = dataset.examples[0]
    with track as bench, torch.inference_mode():
        cells = [Cell("bare"), Cell("oracle"), Cell("oracle", "kept"), Cell("oracle", "blind")]
        rows = {row.cell: row.metrics["nll"] for row in bench.rows([example], cells)}
        model, tokens = bench.main.loaded.model, bench.main.kit.tokens
        line, question = tokens.ids("\n"), tokens.ids(example.question)
        answer, document = tokens.ids(example.target), tokens.ids(example.context)
        for cell, found in rows.items():
            ahead = [*question, *line] if cell.condition == "oracle" else []
            said = [*([] if cell.setting == "blind" else [*question, *line]), *answer]
            read = torch.tensor([[*ahead, *document]])
            states = model.get_encoder()(input_ids=read)
            shown = torch.ones_like(read)
            shown[:, : len(ahead)] = int(cell.setting == "kept")
            start = model.config.decoder_start_token_id
            logits = model(
                encoder_outputs=states,
                attention_mask=shown,
                decoder_input_ids=torch.tensor([[start, *said[:-1]]]),
            ).logits[0, -len(answer) :]
            expected = torch.nn.functional.cross_entropy(logits, torch.tensor(answer))
            assert found == pytest.approx(float(expected), abs=1e-4)


def test_a_row_does_not_depend_on_its_company(opened):
    together = rows_of(opened, "encdec-04")
    track, dataset, protocol = opened("encdec-04")
    with track as bench:
        for example in dataset.examples[:2]:
            for row in bench.rows([example], cells_of(protocol)):
                assert row.metrics == pytest.approx(together[example.id, row.cell].metrics, abs=1e-4)


@pytest.mark.parametrize("name", TEN)
def test_every_experiment_gives_values(opened, name):
    changes = {"settings": ("none", "padded@98", "padded@256")} if name == "encdec-02" else {}
    found = rows_of(opened, name, n=3, **changes)
    values = [row.metrics["nll"] for row in found.values()]
    assert sum(value is not None and value > 0 for value in values) >= len(values) / 2


def test_answers_are_short_or_long(opened):
    found = rows_of(opened, "encdec-06")
    for example in {example for example, _ in found}:
        halves = [found[example, Cell("bare", half)].metrics["nll"] for half in ("short", "long")]
        assert [value is None for value in halves].count(True) == 1
        assert found[example, Cell("bare")].metrics["nll"] in halves


def test_shares_of_attention_are_shares(opened):
    found = rows_of(opened, "encdec-07")
    for (_, cell), row in found.items():
        assert 0 < row.metrics["cross_answer"] < 1
        assert row.metrics["cross_entropy"] > 0
        assert (row.metrics["self_prefix"] is None) == (cell.condition == "bare")


def test_a_setting_joins_its_parts():
    assert Setting.of("none") == Setting()
    found = Setting.of("blind+padded@512+kept")
    assert (found.asked, found.padded, found.kept) == ("nothing", 512, True)
    for wrong in ("padded@0", "on:", "blind+", "sideways"):
        with pytest.raises(KvguardError, match="is unknown: write none, blind"):
            Setting.of(wrong)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"settings": ("none", "on:nobody")}, "nobody"),
        ({"settings": ("sideways",)}, "sideways"),
        ({"conditions": ("bare", "llm_extract")}, "an encoder-decoder writes no prefixes"),
    ],
)
def test_a_mistake_is_one_line(opened, changes, says):
    with pytest.raises(KvguardError, match=says) as raised:
        rows_of(opened, "encdec-01", **changes)
    assert "\n" not in str(raised.value)


def test_a_decoder_is_no_encoder_decoder(bench):
    track, _, _ = bench("encdec-01")
    with pytest.raises(KvguardError, match="it is a decoder, and an encoder-decoder is needed"), track:
        pass
