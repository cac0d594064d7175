"""D-LOCO codes beside brute force for short words and beside counting in big integers for long ones."""

import itertools
import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmill.compress import dna_storage
from seqmill.compress.dna_storage import BRIDGE_VALUES, LETTERS, DnaStorageConfig, completions, rank, unrank, words
from seqmill.errors import UserError

CONFIGS = [
    DnaStorageConfig(word_length, max_run, protection)
    for word_length, max_run in ((5, 2), (9, 3), (23, 3), (31, 4))
    for protection in dna_storage.PROTECTIONS
]
configs = st.sampled_from(CONFIGS)
detecting = st.sampled_from([config for config in CONFIGS if config.protection == "detect"])
correcting = st.sampled_from([config for config in CONFIGS if config.protection == "correct"])


def longest_run(letters: bytes) -> int:
    return max((len(list(run)) for _, run in itertools.groupby(letters)), default=0)


def all_words(word_length: int, max_run: int) -> list[tuple[int, ...]]:
    return [w for w in itertools.product(range(4), repeat=word_length) if longest_run(bytes(w)) <= max_run]


@cache
def ways(left: int, base: int, run: int, max_run: int) -> int:
    """In how many ways a word goes on, by trying every base."""
    if run > max_run:
        return 0
    if left == 0:
        return 1
    return sum(ways(left - 1, digit, run + 1 if digit == base else 1, max_run) for digit in range(4))


def number(word: tuple[int, ...], max_run: int) -> int:
    """A word's number in Python integers: the words that smaller digits would have begun."""
    total, base, run = 0, 4, 0
    for i, digit in enumerate(word):
        for smaller in range(digit):
            total += ways(len(word) - i - 1, smaller, run + 1 if smaller == base else 1, max_run)
        base, run = digit, run + 1 if digit == base else 1
    return total


def substituted(strand: bytes, position: int, shift: int) -> bytes:
    other = LETTERS[(LETTERS.index(strand[position]) + shift) % 4]
    return strand[:position] + bytes([other]) + strand[position + 1 :]


@pytest.mark.parametrize(("word_length", "max_run"), [(m, run) for m in range(2, 9) for run in (1, 2, 3) if run < m])
def test_numbers_and_words_are_a_bijection_in_the_order_of_the_letters(word_length: int, max_run: int) -> None:
    table = completions(word_length, max_run)
    expected = all_words(word_length, max_run)
    assert words(word_length, max_run) == len(expected)
    found = np.empty(word_length, np.uint8)
    for index, word in enumerate(expected):
        unrank(index, table, found)
        assert tuple(found.tolist()) == word
        assert rank(found, table) == (index, True)


def test_the_counts_of_the_paper() -> None:
    assert [words(m, 3) for m in (5, 8, 15)] == [996, 61_452, 924_213_888]
    assert [math.floor(math.log2(words(m, 3))) for m in (5, 8, 15, 23)] == [9, 15, 29, 45]


@given(st.lists(st.integers(0, 3), min_size=31, max_size=31), st.integers(1, 4))
def test_long_words_have_the_numbers_that_big_integers_give(digits: list[int], max_run: int) -> None:
    found, is_word = rank(np.array(digits, np.uint8), completions(31, max_run))
    assert is_word == (longest_run(bytes(digits)) <= max_run)
    assert found == number(tuple(digits), max_run)


@given(st.integers(0, 2**63), st.integers(1, 4))
def test_the_largest_codewords_are_read_back(index: int, max_run: int) -> None:
    index %= words(31, max_run)
    word = np.empty(31, np.uint8)
    unrank(index, completions(31, max_run), word)
    assert rank(word, completions(31, max_run)) == (index, True)
    assert rank(3 - word, completions(31, max_run)) == (words(31, max_run) - 1 - index, True)


@settings(deadline=None)
@given(st.binary(max_size=300), configs)
def test_any_bytes_come_back_and_runs_and_balance_are_bounded(data: bytes, config: DnaStorageConfig) -> None:
    strand = dna_storage.encode(data, config)
    assert dna_storage.decode(strand, config) == data
    assert longest_run(strand) <= config.max_run
    excess = np.cumsum([1 if letter in b"GC" else -1 for letter in strand])
    ends = np.arange(config.word_length - 1, len(strand), config.step)
    assert np.abs(excess[ends]).max() <= config.word_length + 1
    assert len(strand) == config.step * -(-(8 * len(data) + 1) // config.message_bits)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("fill", [b"\x00", b"\xff", b"\x55"])
def test_a_megabit_of_one_byte_stays_within_the_bounds(config: DnaStorageConfig, fill: bytes) -> None:
    data = fill * 12_500
    strand = dna_storage.encode(data, config)
    assert dna_storage.decode(strand, config) == data
    assert longest_run(strand) <= config.max_run
    assert abs((strand.count(b"G") + strand.count(b"C")) / len(strand) - 0.5) < 0.001


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_random_bits_have_forty_to_sixty_per_cent_of_gc_in_every_window_of_ten_codewords(
    config: DnaStorageConfig,
) -> None:
    strand = dna_storage.encode(np.random.default_rng(5).bytes(12_500), config)
    is_gc = np.isin(np.frombuffer(strand, np.uint8), np.frombuffer(b"GC", np.uint8))
    assert 0.49 < is_gc.mean() < 0.51
    sums = np.concatenate([[0], np.cumsum(is_gc)])[:: config.step]
    shares = (sums[10:] - sums[:-10]) / (10 * config.step)
    assert 0.4 <= shares.min() <= shares.max() <= 0.6


def test_a_bridge_value_is_changed_by_any_substitution_and_can_balance_whatever_its_neighbours() -> None:
    for line in (*BRIDGE_VALUES, *BRIDGE_VALUES.T):
        assert sorted(line) == [0, 1, 2, 3]
    for value, before, behind in itertools.product(range(4), range(4), range(4)):
        pairs = [(a, b) for a, b in np.argwhere(value == BRIDGE_VALUES).tolist() if a != before and b != behind]
        excess = [(a >= 2) + (b >= 2) - 1 for a, b in pairs]
        assert min(excess) <= 0 <= max(excess)


@pytest.mark.parametrize("max_run", [2, 3])
def test_every_single_substitution_in_every_codeword_and_bridge_is_detected(max_run: int) -> None:
    config = DnaStorageConfig(5, max_run, "detect")
    data = b"".join(bytes([value]) for value in range(256))
    strand = dna_storage.encode(data, config)
    for position, shift in itertools.product(range(len(strand)), (1, 2, 3)):
        hurt = dna_storage.read(substituted(strand, position, shift), config)
        assert hurt.damaged.tolist() == [position // config.step]


@settings(deadline=None)
@given(st.binary(max_size=100), detecting, st.data())
def test_one_substitution_in_each_of_several_codewords_is_found_there(
    data: bytes, config: DnaStorageConfig, draw: st.DataObject
) -> None:
    strand = dna_storage.encode(data, config)
    hit = draw.draw(st.sets(st.integers(0, len(strand) // config.step - 1), min_size=1))
    for codeword in hit:
        position = codeword * config.step + draw.draw(st.integers(0, config.step - 1))
        strand = substituted(strand, position, draw.draw(st.integers(1, 3)))
    assert dna_storage.read(strand, config).damaged.tolist() == sorted(hit)
    with pytest.raises(UserError, match=f"{len(hit)} of .* codewords are damaged, the first number {min(hit)} at"):
        dna_storage.decode(strand, config)


@pytest.mark.parametrize(("word_length", "max_run"), [(3, 1), (5, 1), (5, 2), (5, 3), (6, 2), (7, 3)])
def test_the_differences_are_all_that_a_substitution_can_make_and_no_more(word_length: int, max_run: int) -> None:
    table = completions(word_length, max_run)
    found = set()
    for index, word in enumerate(all_words(word_length, max_run)):
        for position, digit in itertools.product(range(word_length), range(4)):
            if digit != word[position]:
                changed = np.array([*word[:position], digit, *word[position + 1 :]], np.uint8)
                found.add(rank(changed, table)[0] - index)
    assert dna_storage.differences(word_length, max_run) == found - {0}


@pytest.mark.parametrize(("word_length", "max_run"), [(5, 1), (5, 2), (7, 3), (9, 3)])
def test_residues_tell_differences_apart_and_no_smaller_odd_number_does(word_length: int, max_run: int) -> None:
    differences = {0, *dna_storage.differences(word_length, max_run)}
    modulus = dna_storage.redundancy(word_length, max_run)[0]
    assert len({difference % modulus for difference in differences}) == len(differences)
    for smaller in range(1, modulus, 2):
        assert len({difference % smaller for difference in differences}) < len(differences)


@pytest.mark.parametrize(("word_length", "max_run"), [(9, 3), (9, 2), (7, 1)])
def test_every_single_substitution_is_put_right(word_length: int, max_run: int) -> None:
    """All codewords of the code, each followed by its bridge, each base replaced by each other one."""
    config = DnaStorageConfig(word_length, max_run, "correct")
    bits = "".join(f"{message:0{config.message_bits}b}" for message in range(1 << config.message_bits))
    data = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits) // 8 * 8, 8))
    strand = dna_storage.encode(data, config)
    for position, shift in itertools.product(range(len(strand)), (1, 2, 3)):
        hurt = substituted(strand, position, shift)
        in_bridge = position % config.step == word_length
        assert dna_storage.decode(hurt, config) == data
        assert dna_storage.read(hurt, config).corrected.tolist() == ([] if in_bridge else [position])


@settings(deadline=None)
@given(st.binary(max_size=100), correcting, st.data())
def test_one_substitution_in_every_codeword_at_once_is_put_right(
    data: bytes, config: DnaStorageConfig, draw: st.DataObject
) -> None:
    strand = dna_storage.encode(data, config)
    for start in range(0, len(strand), config.step):
        position = start + draw.draw(st.integers(0, config.word_length))
        strand = substituted(strand, position, draw.draw(st.integers(1, 3)))
    assert dna_storage.decode(strand, config) == data


def test_two_substitutions_in_a_codeword_are_mostly_found_out() -> None:
    config = DnaStorageConfig(23, 3, "correct")
    rng = np.random.default_rng(3)
    data = rng.bytes(12_000)
    strand = bytearray(dna_storage.encode(data, config))
    clean = dna_storage.read(bytes(strand), config)
    for start in range(0, len(strand), config.step):
        for position in rng.choice(config.word_length, 2, replace=False):
            strand[start + position] = LETTERS[(LETTERS.index(strand[start + position]) + rng.integers(1, 4)) % 4]
    hurt = dna_storage.read(bytes(strand), config)
    wrong = (hurt.states != dna_storage.DAMAGED) & (hurt.messages != clean.messages)
    assert wrong.mean() < 0.03
    assert (hurt.states != dna_storage.CLEAN).all()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ((22, 3, "none"), "word_length = 22"),
        ((33, 3, "none"), "word_length = 33"),
        ((1, 1, "none"), "word_length = 1"),
        ((5, 5, "none"), "max_run = 5"),
        ((5, 0, "none"), "max_run = 0"),
        ((23, 7, "none"), "max_run = 7: choose from 1 to 6"),
        ((23, 1, "detect"), "max_run = 1"),
        ((23, 3, "repair"), "protection = 'repair'"),
        ((3, 2, "correct"), "less than one bit"),
    ],
)
def test_impossible_codes_are_refused(settings: tuple[int, int, str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        DnaStorageConfig(*settings)


@pytest.mark.parametrize(
    ("strand", "told"),
    [
        (b"", "0 bases"),
        (b"ACG", "3 bases"),
        (b"ACGTNACGTACGTACGTACGTACGT", "base 4 of the strand is b'N'"),
        (b"acgtacgtacgtacgtacgtacgta", "base 0 of the strand is b'a'"),
    ],
)
def test_what_is_no_strand_is_refused(strand: bytes, told: str) -> None:
    with pytest.raises(UserError, match=told):
        dna_storage.decode(strand)


def test_a_strand_without_its_end_is_refused() -> None:
    config = DnaStorageConfig(23, 3, "none")  # 44 bits a codeword
    strand = dna_storage.encode(b"\x00" * 50, config)
    with pytest.raises(UserError, match="no end of the data"):
        dna_storage.decode(strand[: -config.step], config)


def test_too_long_a_run_is_damage_even_without_protection() -> None:
    config = DnaStorageConfig(23, 3, "none")
    strand = b"AAAA" + dna_storage.encode(b"twelve bytes", config)[4:]
    with pytest.raises(UserError, match="the first number 0 at bases 0 to 23"):
        dna_storage.decode(strand, config)
