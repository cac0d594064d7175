"""Bytes as DNA that can be made and read: no long runs of one base, as many of G and C as of A and T, errors found.

D-LOCO codes (Irimagzi, Uslan, Hareedy 2023, arXiv 2311.08325). A codeword is any string of m bases over A < T < G < C
without a run of more than l; its number is its rank among them, counted instead of looked up. With m = 2, l = 1:

    AT AG AC TA TG TC GA GT GC CA CT CG      are numbers 0 to 11

Exchanging A with C and T with G turns number g into 11 - g, G and C into A and T, and leaves runs as long as they were.
So only the lower half of the numbers is used; of a codeword and its complement the one is written that pulls the
strand towards as much GC as AT, and both are read as the same number. Between codewords stand bridges that end runs:

    protection   bridge   what is certain                                      m = 23, l = 3: bits a base
    none         1 base   the bounds on runs and GC                            1.83
    detect       2 bases  and every single substitution is found               1.76
    correct      1 base   and every single substitution is put right           1.25

each within one codeword and the bridge behind it. `none` is the paper's. Its three bridges that find substitutions were
not at hand, so `detect` is our own: two bases write a sum of the codeword, in a way that neighbours do not matter to.
`correct` is the idea of arXiv 2504.01262: only numbers of one residue modulo R are used, and R is such that what a
substitution adds to a number is told by its residue. How that paper chooses R, its bridge of three bases and its lists
for two substitutions were not at hand: R here is the least odd number that tells all differences apart, also of words
that the substitution gave too long a run, and the residue is (N - 1) / 2, which complements share, instead of 0.

Insertions and deletions are beyond all of these: a strand of the wrong length is refused, and no more.
"""

from dataclasses import dataclass
from functools import cache

import numba
import numpy as np

from seqmill.errors import UserError

LETTERS = b"ATGC"  # in the order of the code; the complement of digit d is 3 - d, and digits 2 and 3 are G and C
PROTECTIONS = ("none", "detect", "correct")
LONGEST_WORD = 31  # bases: there are fewer than 2**62 codewords, and numbers fit int64
MOST_RUN = 6  # bases; the differences of `correct` grow with its cube
NO_LETTER = 255
NO_DIFFERENCE = np.iinfo(np.int64).max
CLEAN, CORRECTED, DAMAGED = 0, 1, 2

# What two bases of a bridge write. Every value stands once in each row and column, so any substitution changes it; it
# stands for one pair of AT, one of GC and two mixed ones, so two forbidden pairs leave one that does no harm to GC.
BRIDGE_VALUES = np.array([[0, 1, 2, 3], [2, 3, 0, 1], [3, 2, 1, 0], [1, 0, 3, 2]], np.uint8)


@dataclass(frozen=True)
class DnaStorageConfig:
    """The shape of codewords and how far errors are withstood."""

    word_length: int = 23  # m, bases of a codeword; odd, so that none has as much GC as AT and balance can be kept
    max_run: int = 3  # l, the longest run of one base anywhere in a strand
    protection: str = "detect"  # "none", "detect" or "correct": of one substitution per codeword and bridge

    def __post_init__(self) -> None:
        m, run = self.word_length, self.max_run
        if self.protection not in PROTECTIONS:
            raise UserError(f"protection = {self.protection!r}: choose one of {', '.join(PROTECTIONS)}")
        if not 3 <= m <= LONGEST_WORD or m % 2 == 0:
            raise UserError(
                f"word_length = {m}: choose an odd number from 3 to {LONGEST_WORD}; even words can hold as much GC as "
                "AT and would not balance a strand, and numbers of longer ones exceed 64 bits"
            )
        if not 1 <= run <= min(MOST_RUN, m - 1):
            raise UserError(
                f"max_run = {run}: choose from 1 to {min(MOST_RUN, m - 1)}, less than word_length; longer runs are no "
                "bound that DNA is made or read by"
            )
        if run == 1 and self.protection == "detect":
            raise UserError("max_run = 1 leaves no choice to a bridge of two bases: choose 2 or more, or 'correct'")
        if self.message_bits < 1:
            raise UserError(
                f"word_length = {m} with max_run = {run} and protection = {self.protection!r} leaves less than one bit "
                f"a codeword: {words(m, run)} codewords, of which one in {2 * self.modulus} is used; take longer words"
            )

    @property
    def bridge_length(self) -> int:
        """Bases behind every codeword."""
        return 2 if self.protection == "detect" else 1

    @property
    def step(self) -> int:
        """Bases of a codeword and its bridge."""
        return self.word_length + self.bridge_length

    @property
    def modulus(self) -> int:
        """R: numbers in use are equal modulo R. 1 when nothing is to be corrected."""
        return redundancy(self.word_length, self.max_run)[0] if self.protection == "correct" else 1

    @property
    def residue(self) -> int:
        """What numbers in use leave modulo R: r = (N - 1) / 2, for then N - 1 - g leaves r whenever g does."""
        inverse_of_two = (self.modulus + 1) // 2
        return (words(self.word_length, self.max_run) - 1) * inverse_of_two % self.modulus

    @property
    def message_bits(self) -> int:
        """Bits of a codeword."""
        half = words(self.word_length, self.max_run) // 2
        return max(0, ((half - 1 - self.residue) // self.modulus + 1).bit_length() - 1)

    @property
    def bits_per_base(self) -> float:
        """The rate, bridges included; 2 would be no constraint at all."""
        return self.message_bits / self.step


@dataclass(frozen=True, eq=False)
class Reading:
    """What the codewords of a strand say, and where it was hurt."""

    messages: np.ndarray  # uint64[codewords]; 0 where damaged
    states: np.ndarray  # uint8[codewords]: CLEAN, CORRECTED or DAMAGED
    corrected: np.ndarray  # int64[substitutions put right]: their positions in the strand, in bases
    damaged: np.ndarray  # int64[codewords beyond repair]: their numbers from 0


def encode(data: bytes, config: DnaStorageConfig | None = None) -> bytes:
    """One strand of A, C, G and T.

    A one bit and zeros behind the data fill the last codeword, so `decode` knows where the data ends.
    """
    config = config or DnaStorageConfig()
    messages = _cut(np.frombuffer(data, np.uint8), config.message_bits)
    numbers = messages * np.uint64(config.modulus) + np.uint64(config.residue)
    table = completions(config.word_length, config.max_run)
    digits = _write(numbers.astype(np.int64), table, words(config.word_length, config.max_run), config.bridge_length)
    return np.frombuffer(LETTERS, np.uint8)[digits].tobytes()


def decode(strand: bytes, config: DnaStorageConfig | None = None) -> bytes:
    """The data of a strand, substitutions put right where `config` allows.

    Raises:
        UserError: another letter than A, C, G and T, a length that is no number of codewords, a codeword that is
            damaged beyond repair, or no end of the data.
    """
    config = config or DnaStorageConfig()
    reading = read(strand, config)
    if len(reading.damaged):
        first = int(reading.damaged[0])
        raise UserError(
            f"{len(reading.damaged)} of {len(reading.states)} codewords are damaged, the first number {first} at bases "
            f"{first * config.step} to {(first + 1) * config.step - 1}: read the strand again, or use "
            "protection = 'correct' for the next one"
        )
    return _join(reading.messages, config.message_bits).tobytes()


def read(strand: bytes, config: DnaStorageConfig | None = None) -> Reading:
    """All codewords of a strand, with what was put right and what was beyond it.

    Raises:
        UserError: another letter than A, C, G and T, or a length that is no number of codewords with their bridges.
    """
    config = config or DnaStorageConfig()
    digit_of = np.full(256, NO_LETTER, np.uint8)
    digit_of[np.frombuffer(LETTERS, np.uint8)] = np.arange(4)
    digits = digit_of[np.frombuffer(strand, np.uint8)]
    strange = np.flatnonzero(digits == NO_LETTER)
    if len(strange):
        position = int(strange[0])
        raise UserError(
            f"base {position} of the strand is {strand[position : position + 1]!r}: only A, C, G and T can be read"
        )
    if len(digits) % config.step or not len(digits):
        raise UserError(
            f"a strand of {len(digits)} bases is no number of codewords of {config.word_length} and bridges of "
            f"{config.bridge_length}: bases are missing or added, or it was written with other settings"
        )
    table, total = completions(config.word_length, config.max_run), words(config.word_length, config.max_run)
    errors = redundancy(config.word_length, config.max_run)[1] if config.modulus > 1 else np.zeros(1, np.int64)
    numbers, states, places = _read(digits, table, total, config.bridge_length, config.residue, errors)
    messages = (numbers - config.residue) // config.modulus
    states[messages >> config.message_bits != 0] = DAMAGED  # a number that no message has
    damaged = states == DAMAGED
    places = places[states == CORRECTED]
    return Reading(np.where(damaged, 0, messages).astype(np.uint64), states, places, np.flatnonzero(damaged))


def words(word_length: int, max_run: int) -> int:
    """N(m, l): how many strings of so many bases have no longer run (2311.08325, section III)."""
    return 4 * int(completions(word_length, max_run)[word_length - 1, 1])


@cache
def completions(word_length: int, max_run: int) -> np.ndarray:
    """F[r, t]: in how many ways a word can go on for r bases behind a run of t. int64[word_length, max_run + 2].

    F[0, t] = 1; F[r, t] = F[r - 1, t + 1] (the same base again) + 3 F[r - 1, 1]; F[r, max_run + 1] = 0.
    """
    ways = np.zeros((word_length, max_run + 2), np.int64)
    ways[0, : max_run + 1] = 1
    for left in range(1, word_length):
        for run in range(max_run + 1):
            ways[left, run] = ways[left - 1, run + 1] + 3 * ways[left - 1, 1]
    return ways


@cache
def redundancy(word_length: int, max_run: int) -> tuple[int, np.ndarray]:
    """R(m), and the table that a residue is looked up in.

    Returns:
        The least odd R that leaves a residue of its own for each of `differences` and for 0, and
        int64[R]: the difference of every residue, `NO_DIFFERENCE` where there is none.
    """
    found = np.array(sorted({0, *differences(word_length, max_run)}), np.int64)
    modulus = _tell_apart(found)
    table = np.full(modulus, NO_DIFFERENCE, np.int64)
    table[found % modulus] = found
    return modulus, table


def differences(word_length: int, max_run: int) -> set[int]:
    """All that one substitution in a codeword can add to its number (2504.01262).

    A base weighs by the words that smaller ones would have begun; which those are depends on the run before it. So a
    substitution changes the weight of its own base and of those behind it up to the first that ends a run, and all
    cases are: its position, the run before, the run behind and the base behind that.
    """
    table = completions(word_length, max_run)
    ways = [[int(number) for number in row] for row in table]
    found: set[int] = set()
    for position in range(word_length):
        tails = list(_tails(word_length - position - 1, max_run))
        heads = [(4, 0)] if position == 0 else [(b, t) for b in range(4) for t in range(1, min(max_run, position) + 1)]
        for base, run in heads:
            for tail in tails:
                weighed = [_weigh(ways, position, base, run, (digit, *tail)) for digit in range(4)]
                legal = [weight for weight, is_word in weighed if is_word]
                found.update(after - before for before in legal for after, _ in weighed)
    return found - {0}


def _tails(left: int, max_run: int) -> set[tuple[int, ...]]:
    """What can stand behind a base that has `left` bases behind it, up to the first that differs from the one before.

    With 3 bases left and runs of up to 2: AT AG AC AAT AAG AAC TA ...; with 1 left: A T G C; with 0: nothing.
    """
    runs = [(digit,) * length for digit in range(4) for length in range(1, max_run + 1)]
    ended = {(*run, other) for run in runs for other in range(4) if other != run[0] and len(run) < left}
    return ended | {run for run in runs if len(run) == left} | ({()} if left == 0 else set())


def _weigh(ways: list[list[int]], position: int, base: int, run: int, digits: tuple[int, ...]) -> tuple[int, bool]:
    """What digits from a position on, behind a run, add to a word's number; and whether no run is too long."""
    weight, longest = 0, len(ways[0]) - 2
    is_word = True
    for left, digit in zip(range(len(ways) - position - 1, -1, -1), digits, strict=False):
        again = min(run, longest) + 1
        weight += sum(ways[left][again if smaller == base else 1] for smaller in range(digit))
        base, run = digit, again if digit == base else 1
        is_word = is_word and run <= longest
    return weight, is_word


@numba.njit(cache=True, nogil=True)
def _tell_apart(numbers: np.ndarray) -> int:
    """The least odd modulus, from as many as there are numbers on, that leaves all of them different residues."""
    modulus = len(numbers) | 1
    while True:
        seen = np.zeros(modulus, np.bool_)
        for number in numbers:
            if seen[number % modulus]:
                break
            seen[number % modulus] = True
        else:
            return modulus
        modulus += 2


@numba.njit(cache=True, nogil=True)
def rank(word: np.ndarray, table: np.ndarray) -> tuple[int, bool]:
    """The number of a word, uint8[m] of digits, and whether it is a codeword: no run is too long.

    A word that is none has a number too: runs that are too long weigh nothing.
    """
    number, base, run, longest, is_word = 0, 4, 0, table.shape[1] - 2, True
    for i in range(len(word)):
        digit, left = word[i], len(word) - i - 1
        again = min(run, longest) + 1
        number += digit * table[left, 1]
        if base < digit:
            number += table[left, again] - table[left, 1]
        run = again if digit == base else 1
        base = digit
        is_word = is_word and run <= longest
    return number, is_word


@numba.njit(cache=True, nogil=True)
def unrank(number: int, table: np.ndarray, word: np.ndarray) -> None:
    """Write the codeword of a number, from 0 to N - 1, into uint8[m]."""
    base, run = 4, 0
    for i in range(len(word)):
        left = len(word) - i - 1
        for digit in range(4):
            length = run + 1 if digit == base else 1
            if number < table[left, length]:
                break
            number -= table[left, length]
        run = length
        base = digit
        word[i] = digit


@numba.njit(cache=True, nogil=True)
def _write(numbers: np.ndarray, table: np.ndarray, total: int, bridge_length: int) -> np.ndarray:
    """Digits of a strand: for every number its codeword or the complement, whichever balances, and a bridge."""
    length = len(table)
    step = length + bridge_length
    digits = np.empty(len(numbers) * step, np.uint8)
    excess = 0  # bases of G and C less those of A and T, so far
    for k in range(len(numbers)):
        word = digits[k * step : k * step + length]
        unrank(numbers[k], table, word)
        own = _excess(word)
        if own * excess > 0:
            for i in range(length):
                word[i] = 3 - word[i]
            own = -own
        if k:
            excess += _bridge(digits, k * step - bridge_length, bridge_length, length, excess + own)
        excess += own
    _bridge(digits, len(digits) - bridge_length, bridge_length, length, excess)
    return digits


@numba.njit(cache=True, nogil=True)
def _excess(word: np.ndarray) -> int:
    total = 0
    for digit in word:
        total += 1 if digit >= 2 else -1
    return total


@numba.njit(cache=True, nogil=True)
def _bridge(digits: np.ndarray, start: int, bridge_length: int, length: int, excess: int) -> int:
    """Fill a bridge so that no run goes on through it, by choice what balances; its own excess of G and C."""
    before = digits[start - 1]
    behind = digits[start + bridge_length] if start + bridge_length < len(digits) else 4
    best, best_first, best_second, best_excess = 1 << 30, 0, 0, 0
    wanted = _sum(digits[start - length : start])
    for first in range(4):
        for second in range(4):
            if bridge_length == 1:
                legal = first == second and first != before and first != behind
            else:
                legal = first != before and second != behind and BRIDGE_VALUES[first, second] == wanted
            own = ((1 if first >= 2 else -1) + (1 if second >= 2 else -1)) * bridge_length // 2
            if legal and abs(excess + own) < best:
                best, best_first, best_second, best_excess = abs(excess + own), first, second, own
    digits[start] = best_first
    digits[start + bridge_length - 1] = best_second
    return best_excess


@numba.njit(cache=True, nogil=True)
def _sum(word: np.ndarray) -> int:
    total = 0
    for digit in word:
        total += digit
    return total % 4


@numba.njit(cache=True, nogil=True)
def _read(
    digits: np.ndarray, table: np.ndarray, total: int, bridge_length: int, residue: int, errors: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers below N / 2 of all codewords, their states, and the position of what was put right in each, else -1."""
    length, modulus = len(table), len(errors)
    step = length + bridge_length
    count = len(digits) // step
    numbers, states, places = np.full(count, residue), np.zeros(count, np.uint8), np.full(count, -1)
    meant = np.empty(length, np.uint8)
    for k in range(count):
        word = digits[k * step : k * step + length]
        number, is_word = rank(word, table)
        difference = errors[(number - residue) % modulus]
        known = difference != NO_DIFFERENCE and 0 <= number - difference < total
        if not known or (modulus == 1 and not is_word):
            states[k] = DAMAGED
            continue
        number -= difference
        if modulus > 1:
            unrank(number, table, meant)
            changes = 0
            for i in range(length):
                if meant[i] != word[i]:
                    changes += 1
                    places[k] = k * step + i
            states[k] = min(changes, DAMAGED)
        elif bridge_length == 2:
            written = BRIDGE_VALUES[digits[k * step + length], digits[k * step + length + 1]]
            states[k] = CLEAN if written == _sum(word) else DAMAGED
        numbers[k] = min(number, total - 1 - number)
    return numbers, states, places


def _cut(data: np.ndarray, width: int) -> np.ndarray:
    """uint64[codewords]: the data's bits, a one and zeros, `width` bits each, the first bit the highest."""
    return _pack(data, width, (8 * len(data) + 1 + width - 1) // width)


@numba.njit(cache=True, nogil=True)
def _pack(data: np.ndarray, width: int, count: int) -> np.ndarray:
    messages = np.zeros(count, np.uint64)
    for k in range(count):
        message = np.uint64(0)
        for bit in range(k * width, (k + 1) * width):
            byte = bit >> 3
            value = (data[byte] >> (7 - (bit & 7))) & 1 if byte < len(data) else bit == 8 * len(data)
            message = (message << np.uint64(1)) | np.uint64(value)
        messages[k] = message
    return messages


def _join(messages: np.ndarray, width: int) -> np.ndarray:
    """uint8[bytes]: what `_cut` cut.

    Raises:
        UserError: the one bit behind the data is missing or not behind a whole byte.
    """
    data, ones = _unpack(messages, width)
    end = len(messages) * width - 1 - ones
    if ones >= width or end % 8:
        raise UserError(
            f"the strand's {len(messages)} codewords hold no end of the data: codewords at the end are missing, or it "
            "was written with other settings"
        )
    return data[: end // 8]


@numba.njit(cache=True, nogil=True)
def _unpack(messages: np.ndarray, width: int) -> tuple[np.ndarray, int]:
    """All bits as bytes, and how many zeros stand behind the last one."""
    bits = len(messages) * width
    data = np.zeros((bits + 7) // 8, np.uint8)
    zeros = bits
    for bit in range(bits):
        k = bit // width
        value = (messages[k] >> np.uint64(width - 1 - (bit - k * width))) & np.uint64(1)
        data[bit >> 3] |= np.uint8(value << np.uint64(7 - (bit & 7)))
        if value:
            zeros = bits - 1 - bit
    return data, zeros
