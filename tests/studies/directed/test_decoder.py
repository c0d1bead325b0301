"""Decoder tracks on a tiny random model: exact, batched, resumable, whatever company an example has."""

import pytest
import torch

from kvguard.errors import KvguardError
from kvguard.models.load import LoadedModel
from kvguard.studies.directed.params import load_params
from kvguard.studies.directed.run import cells_of, score
from kvguard.studies.directed.tokens import Tokens
from kvguard.studies.directed.tracks import Cell
from tiny import build
from tokenizers_of_all_kinds import CHATML, make


def by_cell(rows):
    return {(row.example, row.cell): row for row in rows}


def nll_at_once(model, ids, answer):
    """The mean NLL of the answer that ends a text, from one pass over the text."""
    with torch.no_grad():
        told = model(torch.tensor([ids])).logits[0, -len(answer) - 1 : -1].log_softmax(-1)
    return float(-told.gather(1, torch.tensor(answer)[:, None]).mean())


def test_without_a_prefix_the_nll_is_that_of_the_whole_text_read_at_once(bench):
    opened, dataset, _ = bench()
    with opened as decoder:
        example = dataset.examples[0]
        [row] = decoder.rows([example], [Cell("bare")])
        tokens, separator = decoder.tokens, decoder.tokens.ids("\n")
        answer = tokens.ids(example.target)
        ids = [*tokens.ids(example.context), *separator, *tokens.ids(example.question), *separator, *answer]
        logits = (
            decoder.loaded.model(torch.tensor([ids]))
            .logits.detach()[0, -len(answer) - 1 : -1]
            .log_softmax(-1)
        )
        by_hand = -logits.gather(1, torch.tensor(answer)[:, None]).mean()
        assert row.metrics["nll"] == pytest.approx(float(by_hand), abs=1e-5)
        assert row.metrics["answer_tokens"] == len(answer)


def test_a_prefix_that_is_kept_is_read_as_part_of_the_text(bench):
    opened, dataset, _ = bench("decoder-03")
    with opened as decoder:
        example = dataset.examples[1]
        rows = by_cell(decoder.rows([example], [Cell("oracle_full"), Cell("oracle"), Cell("bare")]))
        tokens, line = decoder.tokens, decoder.tokens.ids("\n")
        asked, answer = tokens.ids(example.question), tokens.ids(example.target)
        ids = [*asked, *line, *tokens.ids(example.context), *line, *asked, *line, *answer]
        logits = (
            decoder.loaded.model(torch.tensor([ids]))
            .logits.detach()[0, -len(answer) - 1 : -1]
            .log_softmax(-1)
        )
        by_hand = float(-logits.gather(1, torch.tensor(answer)[:, None]).mean())
        nll = {cell.condition: row.metrics["nll"] for (_, cell), row in rows.items()}
        assert nll["oracle_full"] == pytest.approx(by_hand, abs=1e-5)
        assert len(set(nll.values())) == 3


def test_an_examples_rows_do_not_depend_on_its_company(bench):
    opened, dataset, protocol = bench("decoder-01")
    cells = cells_of(protocol)
    with opened as decoder:
        together = by_cell(decoder.rows(dataset.examples, cells))
        assert len(together) == len(dataset.examples) * len(cells)
        example = dataset.examples[2]
        for cell in cells:
            [alone] = decoder.rows([example], [cell])
            assert alone.texts == together[example.id, cell].texts
            assert alone.metrics["nll"] == pytest.approx(together[example.id, cell].metrics["nll"], abs=1e-5)


def test_a_press_keeps_fewer_entries_and_texts_are_judged(bench):
    opened, dataset, protocol = bench(
        "compression-01", settings=("none", "knorm@0.5"), conditions=("bare", "oracle"), grids={}
    )
    with opened as decoder:
        rows = by_cell(decoder.rows(dataset.examples[:3], cells_of(protocol)))
        for example in dataset.examples[:3]:
            for condition in ("bare", "oracle"):
                full, pressed = (rows[example.id, Cell(condition, s)].metrics for s in protocol.settings)
                assert full["kept"] == full["document_tokens"]  # this tokenizer has no BOS
                assert pressed["kept"] == pytest.approx(0.5 * full["kept"], abs=1)
                assert pressed["nll"] != full["nll"]
                for metrics in (full, pressed):
                    assert metrics["accuracy"] in (0.0, 1.0)
                    assert metrics["catastrophe"] in (0.0, 1.0)
                    assert 1 <= metrics["generated_tokens"] <= 6


def test_a_run_goes_on_with_what_it_finds_and_ends_the_same(bench, tmp_path):
    opened, dataset, protocol = bench("decoder-03")
    cells, examples = cells_of(protocol), list(dataset.examples)
    with opened as decoder:
        whole = score(decoder, dataset, examples, cells, tmp_path / "whole.jsonl", 2)
        assert (whole.n_made, whole.n_kept) == (len(examples) * len(cells), 0)
        journal = tmp_path / "cut.jsonl"
        lines = (tmp_path / "whole.jsonl").read_bytes()
        journal.write_bytes(lines[: int(0.4 * len(lines))])  # as a kill may leave it: in the midst of a line
        resumed = score(decoder, dataset, examples, cells, journal, 2)
        assert 0 < resumed.n_kept < len(whole.texts)
        assert resumed.texts == whole.texts
        near = resumed.table["value"].to_numpy() - whole.table["value"].to_numpy()
        assert abs(near).max() < 1e-5
        again = score(decoder, dataset, examples[:3], cells[:2], journal, 2)
        assert (again.n_made, again.n_kept) == (0, 6)


def test_other_settings_do_not_take_old_rows_for_theirs(bench, tmp_path, tiny_models, settings):
    journal = tmp_path / "a.jsonl"
    opened, dataset, _ = bench()
    with opened as decoder:
        score(decoder, dataset, dataset.examples, [Cell("bare")], journal, 8)
    settings.write_text(settings.read_text().replace("chunk: 2", 'separator: " "'))
    with bench()[0] as decoder:
        decoder.params = load_params(settings)
        changed = score(decoder, dataset, dataset.examples, [Cell("bare")], journal, 8)
    assert changed.n_kept == 0


def test_a_condition_without_a_prefix_has_a_row_without_a_value(bench, tmp_path):
    class Silent:
        fingerprint = "silent"

        def prepare(self, kinds, examples):
            pass

    opened, dataset, _ = bench("decoder-02")
    with opened as decoder:
        decoder.writer = Silent()
        decoder.kit = decoder.kit.__class__(
            decoder.tokens, dataset, decoder.kit.framings, lambda kind, example: "", 1
        )
        scored = score(
            decoder, dataset, dataset.examples, [Cell("bare"), Cell("llm_extract")], tmp_path / "a", 8
        )
    values = scored.table[scored.table["metric"] == "nll"].set_index(["condition", "example"])["value"]
    assert values["llm_extract"].isna().all()
    assert values["bare"].notna().all()


def test_a_model_writes_its_own_prefixes_once(bench, tmp_path):
    opened, dataset, protocol = bench("decoder-02")
    with opened as decoder:
        first = decoder.rows(dataset.examples, cells_of(protocol))
    written = (tmp_path / "tiny" / "written.jsonl").read_text()
    assert len(written.splitlines()) == 3 * len(dataset.examples)
    opened, dataset, protocol = bench("decoder-02")
    with opened as decoder:
        again = decoder.rows(dataset.examples, cells_of(protocol))
    assert (tmp_path / "tiny" / "written.jsonl").read_text() == written
    assert [row.texts for row in first] == [row.texts for row in again]


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("chat", [True, False])
def test_bos_is_what_prompts_open_with_and_text_has_none(bos, chat):
    tokenizer = make("bytes", bos=bos)
    tokenizer.bos_token = "<bos>"
    tokenizer.chat_template = ("{{ bos_token }}" * bos + CHATML) if chat else None
    model = build("llama", vocab_size=len(tokenizer))
    loaded = LoadedModel("m", model, tokenizer, "f")
    tokens = Tokens.of(loaded)
    assert (tokens.bos is not None) == bos
    assert tokens.bos in (None, tokenizer.bos_token_id)
    assert bool(tokens.head) == bool(tokens.tail) == chat
    assert tokenizer.bos_token_id not in (*tokens.ids("How many?"), *tokens.head)
    assert tokenizer.bos_token_id not in tokens.ids("a <bos> b")
    assert tokens.text(tokens.ids("How many pens?")) == "How many pens?"
    plain = Tokens.of(loaded, "plain")
    assert plain.head == plain.tail == ()
    tokenizer.chat_template = None
    with pytest.raises(KvguardError, match="has no chat template"):
        Tokens.of(loaded, "chat")
