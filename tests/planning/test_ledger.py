"""The books of what is alive."""

import torch

from l2v.planning.ledger import Ledger


def test_a_storage_counts_once_and_until_it_is_gone() -> None:
    ledger = Ledger()
    one = torch.empty(100)
    view = one.view(10, 10)
    ledger.note(one, "activations")
    ledger.note(view, "activations")
    assert ledger.now["activations"] == 400
    del one
    assert ledger.now["activations"] == 400, "a view keeps it"
    del view
    assert ledger.now["activations"] == 0 and ledger.peak["activations"] == 400


def test_a_tensor_that_turns_out_to_be_a_gradient_was_one_at_the_peak() -> None:
    ledger = Ledger()
    before, late = torch.empty(100), torch.empty(1)
    ledger.note(before, "activations")
    gone = torch.empty(50)
    ledger.note(gone, "activations")
    del gone
    ledger.note(late, "activations")  # after the moment when most was alive
    ledger.move([before, late], "gradients")
    assert ledger.peak == dict.fromkeys(ledger.peak, 0) | {"activations": 200, "gradients": 400}
    assert ledger.now == dict.fromkeys(ledger.now, 0) | {"gradients": 404}


def test_weights_that_are_freed_and_come_again_are_followed_and_blocks_are_whole() -> None:
    ledger = Ledger(block=512)
    weight = torch.empty(200)
    storage = weight.untyped_storage()
    ledger.note(weight, "gathers")
    assert ledger.now["gathers"] == 1024
    storage.resize_(0)
    ledger.resize(storage)
    assert ledger.now["gathers"] == 0
    storage.resize_(400)
    ledger.resize(storage)
    assert ledger.now["gathers"] == 512 and ledger.peak["gathers"] == 1024
