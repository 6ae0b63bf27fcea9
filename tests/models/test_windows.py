import itertools
import math

import pytest

from bertchain.models.windows import (
    SpecialTokens,
    WindowSpec,
    cut_pair_windows,
    cut_windows,
    find_special_tokens,
    first_text_room,
    kept_tokens,
    window_spans,
)

pytestmark = pytest.mark.versions

SPECIAL = SpecialTokens(
    prefix=(101,),
    suffix=(102,),
    pair_prefix=(101,),
    pair_middle=(102,),
    pair_suffix=(102,),
    pair_types=(0, 1),
)


def bodies(windows):
    return [window[1:-1] for window in windows]


def test_head_tail_keeps_128_and_382_of_510():
    ids = list(range(1000, 3000))
    (window,) = cut_windows(ids, WindowSpec("head_tail", 512), SPECIAL)
    assert window == [101, *ids[:128], *ids[-382:], 102]


def test_head_tail_keeps_the_proportion_at_other_lengths():
    ids = list(range(1000))
    (window,) = cut_windows(ids, WindowSpec("head_tail", 102), SPECIAL)
    head = round(100 * 128 / 510)
    assert window[1:-1] == ids[:head] + ids[-(100 - head) :]


def test_head_tokens_is_obeyed():
    ids = list(range(1000))
    (window,) = cut_windows(ids, WindowSpec("head_tail", 12, head_tokens=3), SPECIAL)
    assert window[1:-1] == [0, 1, 2, *range(993, 1000)]


@pytest.mark.parametrize("truncation", ["head", "tail", "head_tail", "hierarchical"])
@pytest.mark.parametrize("length", [0, 1, 9, 10])
def test_a_document_that_fits_is_one_whole_window(truncation, length):
    ids = list(range(length))
    assert cut_windows(ids, WindowSpec(truncation, 12), SPECIAL) == [[101, *ids, 102]]


@pytest.mark.parametrize("length", [11, 20, 21, 999, 1000])
def test_hierarchical_rejoins_and_counts(length):
    ids = list(range(length))
    windows = cut_windows(ids, WindowSpec("hierarchical", 12), SPECIAL)
    assert len(windows) == math.ceil(length / 10)
    assert [i for body in bodies(windows) for i in body] == ids


@pytest.mark.parametrize("overlap", [1, 4, 9])
@pytest.mark.parametrize("length", [11, 57, 100])
def test_overlapping_windows_cover_everything_and_share_just_that(overlap, length):
    ids = list(range(length))
    spec = WindowSpec("hierarchical", 12, segment_overlap=overlap)
    pieces = bodies(cut_windows(ids, spec, SPECIAL))
    assert pieces[0] + [i for piece in pieces[1:] for i in piece[overlap:]] == ids
    for left, right in itertools.pairwise(pieces):
        assert left[-overlap:] == right[:overlap]
    assert kept_tokens(window_spans(length, spec, 2)) == length


def test_max_segments_keeps_the_first_windows():
    spec = WindowSpec("hierarchical", 12, max_segments=2)
    assert bodies(cut_windows(list(range(99)), spec, SPECIAL)) == [
        list(range(10)),
        list(range(10, 20)),
    ]
    assert kept_tokens(window_spans(99, spec, 2)) == 20


def test_head_and_tail_keep_their_ends():
    ids = list(range(50))
    assert bodies(cut_windows(ids, WindowSpec("head", 12), SPECIAL)) == [ids[:10]]
    assert bodies(cut_windows(ids, WindowSpec("tail", 12), SPECIAL)) == [ids[-10:]]


def test_windows_without_room_are_refused():
    with pytest.raises(ValueError, match=r"--max_seq_length 2 .* at least 3"):
        cut_windows([1], WindowSpec("head", 2), SPECIAL)
    with pytest.raises(ValueError, match=r"--segment_overlap 10 .* holds 10 tokens"):
        cut_windows([1], WindowSpec("hierarchical", 12, segment_overlap=10), SPECIAL)


def test_a_tokenizer_without_specials_still_gives_a_token():
    assert cut_windows([], WindowSpec("head", 8), SpecialTokens(blank=7)) == [[7]]


def test_pair_windows_repeat_the_first_text_and_cut_the_second():
    first, second = [1, 2], list(range(50, 80))
    spec = WindowSpec("hierarchical", 13)
    windows, types = cut_pair_windows(first, second, spec, SPECIAL)
    room = 13 - 3 - 2
    assert len(windows) == math.ceil(30 / room)
    assert [i for w in windows for i in w[4:-1]] == second
    for window, kinds in zip(windows, types, strict=True):
        assert window[:4] == [101, 1, 2, 102] and window[-1] == 102
        assert kinds == [0] * 4 + [1] * (len(window) - 4)


def test_a_long_first_text_leaves_half_to_the_second():
    spec = WindowSpec("head", 23)
    (window,), _ = cut_pair_windows(list(range(100)), list(range(200, 300)), spec, SPECIAL)
    kept = first_text_room(spec, SPECIAL)
    assert kept == (23 - 4) // 2
    assert len(window) == 23 and sum(200 <= i < 300 for i in window) == 23 - 3 - kept - 2 + 2


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
def test_special_tokens_are_the_tokenizers_own(tokenizers, kind):
    tokenizer = tokenizers[kind]
    special = find_special_tokens(tokenizer)
    text, other = "red cat", "the river"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    more = tokenizer(other, add_special_tokens=False)["input_ids"]
    spec = WindowSpec("head", 128)
    assert cut_windows(ids, spec, special) == [tokenizer(text)["input_ids"]]
    (window,), types = cut_pair_windows(ids, more, spec, special)
    encoded = tokenizer(text, other)
    assert window == encoded["input_ids"]
    if kind == "bert":
        assert types == [encoded["token_type_ids"]]
    else:
        assert types is None
