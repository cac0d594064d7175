from pathlib import Path

import pytest

from seqmill.errors import UserError
from seqmill.pipeline import load_config
from seqmill.pipeline.config import deciding_settings
from seqmill.pipeline.mixing import MixConfig
from seqmill.pipeline.model_steps import read_train_config
from seqmill.pipeline.substrings import SubstringConfig

MINIMAL = 'out = "runs/x"\n[ingest]\ninputs = ["a.jsonl"]\n'
DEMO = Path(__file__).parents[2] / "examples" / "demo.toml"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


def test_the_demo_configuration_is_accepted() -> None:
    config = load_config(DEMO)
    assert config.pack.seq_len == 512
    assert config.train is not None
    assert read_train_config(config.train).model == "tiny"


def test_a_minimal_configuration_prepares_data_and_trains_nothing(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, MINIMAL))
    assert config.ingest.inputs == ("a.jsonl",)
    assert (config.train, config.generate) == (None, None)


def test_overrides_win_in_order_and_take_toml_values(tmp_path: Path) -> None:
    overrides = [
        "pack.seq_len=1024",
        "pack.seq_len=4096",
        "pack.overflow=truncate",
        'ingest.inputs=["b", "c"]',
        "out=o",
    ]
    config = load_config(written(tmp_path, MINIMAL), overrides)
    assert (config.pack.seq_len, config.pack.overflow) == (4096, "truncate")
    assert config.ingest.inputs == ("b", "c")
    assert config.out == "o"


def test_stages_without_a_table_are_left_out_and_presets_stand_below_settings(tmp_path: Path) -> None:
    plain = load_config(written(tmp_path, MINIMAL))
    assert (plain.filter, plain.substrings, plain.traps, plain.mix) == (None, None, None, None)
    text = MINIMAL + '[filter]\npreset = "gopher"\n[filter.gopher_quality]\nmin_words = 9\n[substrings]\n[mix]\n'
    config = load_config(written(tmp_path, text), ["filter.gopher_quality.max_words=99", "mix.epochs.web=2"])
    assert config.filter
    assert config.filter.gopher_repetition.enabled
    quality = config.filter.gopher_quality
    assert (quality.enabled, quality.min_words, quality.max_words) == (True, 9, 99)
    assert config.substrings == SubstringConfig()
    assert config.mix == MixConfig(epochs={"web": 2.0})
    later = load_config(written(tmp_path, text), ["filter.preset=c4"]).filter
    assert later
    assert (later.c4.enabled, later.gopher_quality.enabled) == (True, False)


def test_where_it_runs_and_is_put_does_not_decide_the_bytes(tmp_path: Path) -> None:
    path = written(tmp_path, MINIMAL)
    one = load_config(path)
    two = load_config(path, ["out=elsewhere", "execution.executor=ray", "execution.workers=7"])
    assert deciding_settings(one) == deciding_settings(two)
    assert deciding_settings(one) != deciding_settings(load_config(path, ["pack.seed=1"]))


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (MINIMAL + "[packk]\nseq_len = 3\n", [], "unknown key 'packk' in the configuration; did you mean 'pack'"),
        (MINIMAL + "[pack]\nseq_length = 3\n", [], "unknown key 'pack.seq_length'"),
        (MINIMAL + "[pack]\nseq_len = 0\n", [], "pack.seq_len = 0"),
        (MINIMAL + '[pack]\noverflow = "lose"\n', [], "choose one of split, truncate, drop, error"),
        (MINIMAL + "[pack]\nseq_len = 4096\nshard_tokens = 100\n", [], "pack.shard_tokens = 100"),
        (MINIMAL + "[tokenizer]\nvocab_size = 100\n", [], "tokenizer.vocab_size = 100"),
        (MINIMAL + '[tokenizer]\nkind = "magic"\n', [], "choose one of bpe, unigram"),
        (MINIMAL + "[execution]\nworkers = 0\n", [], "execution.workers = 0"),
        (MINIMAL + '[execution]\nexecutor = "slurm"\n', [], "choose one of local, ray"),
        (MINIMAL + '[generate]\nprompts = ["x"]\n', [], r"\[generate\] needs a \[train\] table"),
        (MINIMAL + "[train]\n[generate]\nprompts = []\n", [], "at least one prompt"),
        (MINIMAL + "[filter]\n[filter.gopher_qualty]\n", [], "did you mean 'gopher_quality'"),
        (MINIMAL + '[filter]\npreset = "best"\n', [], "filter.preset = 'best': choose one of none, gopher, c4"),
        (MINIMAL, ["filter=3"], "filter = 3 is of the wrong type: a table is needed"),
        (MINIMAL, ["filter.preset=['c4']"], r"filter.preset = \['c4'\]"),
        (MINIMAL, ["filter.gopher_quality.min_word=3"], "unknown key 'filter.gopher_quality.min_word'"),
        (MINIMAL + "[substrings]\nmin_byte = 3\n", [], "unknown key 'substrings.min_byte'"),
        (MINIMAL + "[mix]\nweight = { a = 1 }\n", [], "unknown key 'mix.weight'"),
        (MINIMAL + '[mix]\nweights = { a = 1 }\nunit = "tokens"\n', [], "mix by bytes or documents"),
        (MINIMAL + "[traps]\nseed = 1\n", [], "the configuration needs 'traps.file'"),
        (MINIMAL + '[traps]\nfile = "x"\nrepetitions = [0]\n', [], "traps.repetitions = 0"),
        (MINIMAL + '[traps]\nfile = "x"\nfuzzy = 3\n', [], "traps.fuzzy = 3 .* tokenizer.path"),
        ("out = 3\n[ingest]\ninputs = []", [], "out = 3 is of the wrong type|ingest.inputs"),
        ("out = ", [], "not a TOML file"),
        (MINIMAL, ["pack.seq_len"], "write it as table.key=value"),
        (MINIMAL, ["out.name=3"], "'out' is a value, not a table"),
    ],
)
def test_mistakes_are_named_before_any_work(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(written(tmp_path, text), overrides)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no configuration file"):
        load_config(tmp_path / "none.toml")


def test_training_settings_are_checked_too() -> None:
    with pytest.raises(UserError, match=r"unknown key 'train.step' in the configuration; did you mean 'steps'"):
        read_train_config({"step": 3})
    with pytest.raises(UserError, match="there is no such preset"):
        read_train_config({"model": "huge"})
