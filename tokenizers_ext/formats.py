"""Files that hold a subword tokenizer, all read as one: a Hugging Face `tokenizer.json`."""

from pathlib import Path

from seqmill.errors import UserError
from seqmill.tokenizers_ext.sentencepiece_model import convert_model
from seqmill.tokenizers_ext.tiktoken_ranks import convert_ranks, encoding_of_name


def read_tokenizer_file(path: Path) -> bytes:
    """The tokenizer in a file, as the contents of a `tokenizer.json`: NAME.tiktoken, *.model or any other as JSON.

    Raises:
        UserError: the file is missing or not what its name says.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file: give a tokenizer.json or a folder written by `seqmill tokenizer train`")
    contents = path.read_bytes()
    try:
        if path.suffix == ".tiktoken":
            return convert_ranks(contents, encoding_of_name(path))
        if path.suffix == ".model":
            return convert_model(contents)
    except UserError as error:
        raise UserError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from error
    return contents
