"""The place of a tokenizer that the configuration leaves to the weights."""

from vqkit import Tokenizer


class GivenTokenizer(Tokenizer):
    """Stands in a configuration for the tokenizer of `--init_from`, whatever that is made of.

    The command line writes the parts of that tokenizer in its place, before anything is built, so that `config.yaml`
    has them: a run that goes on, and `test`, `validate` and `predict` by that file, need no `--init_from`. By the same
    configuration they take the tokenizer of their checkpoint, or of the saved one that `--ckpt_path` names.

    Raises:
        ValueError: it is built, as in Python, where it would be taken for a tokenizer.
    """

    def __init__(self) -> None:
        raise ValueError(
            "GivenTokenizer stands in configurations of python -m trainers for the tokenizer of --init_from; in Python "
            "take that itself: Tokenizer.from_pretrained(FOLDER)"
        )
