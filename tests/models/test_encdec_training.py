"""Training the reference encoder-decoder: a stopped training goes on as if it had not stopped."""

import dataclasses

import torch
from transformers import AutoModelForSeq2SeqLM

from kvguard.models.reference import encdec


def test_a_training_that_was_stopped_ends_in_the_same_weights(tmp_path):
    settings = encdec.EncDecSettings("t5", tmp_path / "whole", steps=4, save_every=2)
    whole = encdec.train(settings).state_dict()
    stopped = dataclasses.replace(settings, run_folder=tmp_path / "stopped")

    class Stop(Exception):
        pass

    def save_and_stop(*args):
        right(*args)
        raise Stop

    right, encdec._save = encdec._save, save_and_stop
    try:
        encdec.train(stopped)
    except Stop:
        pass
    finally:
        encdec._save = right
    resumed = encdec.train(stopped).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_what_is_exported_is_loaded_as_an_encoder_decoder(tmp_path):
    settings = encdec.EncDecSettings("t5", tmp_path / "run", steps=1)
    encdec.train(settings)
    assert encdec.export(settings, tmp_path / "out") == 1
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    scores = encdec.accuracy(model.float(), 2, 0)
    assert set(scores) == {"accuracy_decoder", "accuracy_encoder"}
