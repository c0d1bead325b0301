"""Masks over prefix and document: causal is the decoder's track, hidden words say nothing."""

import pytest

from kvguard.errors import KvguardError
from kvguard.studies.directed.run import cells_of
from kvguard.studies.directed.tracks import Cell


def nll(bench, experiment, cells=None, **changes):
    opened, dataset, protocol = bench(experiment, **changes)
    with opened as track:
        rows = track.rows(dataset.examples, cells or cells_of(protocol))
    return {(row.example, row.cell): row.metrics["nll"] for row in rows}


def test_a_causal_reading_is_that_of_the_decoder(bench):
    cells = [Cell("bare"), Cell("oracle")]
    assert nll(bench, "prefixlm-01", cells) == pytest.approx(nll(bench, "decoder-01", cells))


def test_a_bidirectional_document_reads_its_own_end(bench):
    found = nll(bench, "prefixlm-01")
    for example in {example for example, _ in found}:
        assert found[example, Cell("bare", "bidirectional")] != pytest.approx(found[example, Cell("bare")])


def test_prefixes_of_one_length_say_the_same_once_their_words_are_hidden(bench):
    found = nll(bench, "prefixlm-02")
    for example in {example for example, _ in found}:
        hidden = {
            found[example, cell]
            for _, cell in found
            if cell.setting == "isolated" and cell.condition != "bare"
        }
        assert max(hidden) - min(hidden) < 1e-4
        seen = {found[example, cell] for _, cell in found if cell.setting == "none"}
        assert max(seen) - min(seen) > 1e-3


@pytest.mark.parametrize("name", ["prefixlm-01", "prefixlm-02", "prefixlm-03"])
def test_every_cell_has_a_value(bench, name):
    opened, dataset, protocol = bench(name)
    with opened as track:
        rows = track.rows(dataset.examples[:2], cells_of(protocol))
    assert len(rows) == 2 * len(cells_of(protocol))
    assert all(row.metrics["nll"] > 0 for row in rows)


def test_a_mask_that_is_unknown_is_one_line(bench):
    opened, _, _ = bench("prefixlm-01", settings=("none", "sideways"))
    with pytest.raises(KvguardError, match="sideways"), opened:
        pass
