import numpy as np

from kvguard.models.reference.corpus import Corpus, tokenizer_texts
from kvguard.models.reference.tokenizer import train_tokenizer


def test_padding_an_evaluation_batch_does_not_pad_the_training_rows() -> None:
    tokenizer = train_tokenizer(tokenizer_texts([], seed=0, n=200), max_length=256)
    corpus = Corpus(tokenizer, [], seed=0)
    before = corpus.batch(0, n_rows=4, row_length=128)
    tokenizer(["a", "a longer text"], padding=True)
    after = corpus.batch(0, n_rows=4, row_length=128)
    assert np.array_equal(before.ids, after.ids)
    assert tokenizer.pad_token_id not in after.ids
