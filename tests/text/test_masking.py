import pytest
import torch

from l2v.text.masking import IGNORED, mask_tokens

VOCABULARY = 1000
MASK = VOCABULARY  # outside of the ids in use, so that it cannot be taken for a random token
SHAPE = (1000, 200)


def masked(probability=0.2, strategy="bert", seed=0, maskable=None, shape=SHAPE):
    ids = torch.randint(VOCABULARY, shape)
    maskable = torch.ones(shape, dtype=torch.bool) if maskable is None else maskable
    generator = torch.Generator().manual_seed(seed)
    result = mask_tokens(
        ids,
        maskable,
        probability=probability,
        strategy=strategy,
        mask_token_id=MASK,
        vocabulary_size=VOCABULARY,
        generator=generator,
    )
    return ids, *result


@pytest.mark.parametrize("strategy", ["bert", "all"])
@pytest.mark.parametrize("probability", [0.15, 0.8])
def test_the_share_of_chosen_tokens_is_the_probability(probability, strategy):
    _, _, labels = masked(probability, strategy)
    share = (labels[:, 1:] != IGNORED).float().mean().item()
    assert share == pytest.approx(probability, abs=0.006)  # over 5 standard deviations on 199,000 tokens


def test_bert_hides_80_percent_replaces_10_and_leaves_10():
    ids, changed, labels = masked(0.5)
    chosen = labels != IGNORED
    hidden = (changed == MASK)[chosen].float().mean().item()
    left = (changed == ids)[chosen].float().mean().item()
    assert hidden == pytest.approx(0.8, abs=0.01)
    assert left == pytest.approx(0.1, abs=0.01)
    assert 1 - hidden - left == pytest.approx(0.1, abs=0.01)


def test_random_replacements_come_from_the_whole_vocabulary():
    ids, changed, labels = masked(0.9)
    random_ids = changed[(labels != IGNORED) & (changed != MASK) & (changed != ids)]
    assert random_ids.min() >= 0 and random_ids.max() < VOCABULARY
    counts = random_ids.bincount(minlength=VOCABULARY)
    assert (counts > 0).all() and counts.max() < 6 * counts.float().mean()


def test_all_hides_every_chosen_token():
    _, changed, labels = masked(0.5, "all")
    assert torch.equal(changed == MASK, labels != IGNORED)


@pytest.mark.parametrize("strategy", ["bert", "all"])
def test_the_first_token_of_a_row_is_never_chosen(strategy):
    ids, changed, labels = masked(1.0, strategy)
    assert (labels[:, 0] == IGNORED).all() and torch.equal(changed[:, 0], ids[:, 0])
    assert (labels[:, 1:] != IGNORED).all()


@pytest.mark.parametrize("strategy", ["bert", "all"])
def test_unmaskable_tokens_are_left_alone(strategy):
    maskable = torch.rand(SHAPE) < 0.5
    ids, changed, labels = masked(1.0, strategy, maskable=maskable)
    assert (labels[~maskable] == IGNORED).all()
    assert torch.equal(changed[~maskable], ids[~maskable])


@pytest.mark.parametrize("strategy", ["bert", "all"])
def test_labels_hold_the_original_ids_where_chosen_and_other_tokens_stay(strategy):
    ids, changed, labels = masked(0.3, strategy)
    chosen = labels != IGNORED
    assert torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(changed[~chosen], ids[~chosen])


def test_nothing_is_chosen_at_probability_zero():
    ids, changed, labels = masked(0.0)
    assert torch.equal(changed, ids) and (labels == IGNORED).all()


def test_the_same_generator_hides_the_same_tokens_and_another_does_not():
    torch.manual_seed(1)
    first = masked(seed=3)
    torch.manual_seed(1)
    again = masked(seed=3)
    torch.manual_seed(1)
    other = masked(seed=4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[2], other[2])


def test_the_input_is_not_changed_and_the_type_is_kept():
    ids = torch.randint(VOCABULARY, (4, 50))
    before = ids.clone()
    changed, labels = mask_tokens(
        ids,
        torch.ones_like(ids, dtype=torch.bool),
        probability=0.9,
        strategy="bert",
        mask_token_id=MASK,
        vocabulary_size=VOCABULARY,
        generator=torch.Generator().manual_seed(0),
    )
    assert torch.equal(ids, before) and changed.dtype == labels.dtype == torch.int64


def test_a_single_row_without_a_batch_is_masked_too():
    _, changed, labels = masked(1.0, "all", shape=(7,))
    assert (labels != IGNORED).tolist() == [False] + [True] * 6 and changed[1:].eq(MASK).all()
