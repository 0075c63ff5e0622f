"""`bert-serving-convert`: write a Google checkpoint as a Hugging Face directory."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bert_serving.server import exit_codes
from bert_serving.server.cli.output import printing
from bert_serving.server.model.google_checkpoint import (
    CKPT_NAME,
    CONFIG_NAME,
    CONVERTED_FILES,
    find_google_checkpoint,
    is_google_directory,
)
from bert_serving.server.model.replica import ModelLoadError
from bert_serving.server.version import __version__

DESCRIPTION = (
    "Write a BERT checkpoint of Google's TensorFlow code as a Hugging Face directory, which "
    "bert-serving-start and transformers read without TensorFlow. The conversion itself needs "
    "it: pip install 'bert-serving-server[tf]'."
)
EPILOG = (
    "Example: bert-serving-convert uncased_L-12_H-768_A-12 bert-base, then "
    "bert-serving-start -model_dir bert-base."
)


@printing()
def main(argv: Sequence[str] | None = None) -> int:
    """Convert a checkpoint; returns the exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    model_dir, out = Path(args.dir).expanduser(), Path(args.out).expanduser()
    tuned = Path(args.tuned_model_dir).expanduser() if args.tuned_model_dir else None
    for directory in filter(None, (model_dir, tuned)):
        if not directory.is_dir():
            parser.error(f"{directory}: no such directory")
    try:
        _check_out(out, may_replace=args.overwrite)
        _check_kind(tuned or model_dir, args.ckpt_name, args.config_name)
        checkpoint = find_google_checkpoint(
            model_dir, tuned or model_dir, args.ckpt_name, args.config_name
        )
        checkpoint.convert(out, lower_case=not args.cased_tokenization)
    except (ModelLoadError, OSError) as error:
        print(f"bert-serving-convert: {error}", file=sys.stderr)
        return exit_codes.FAILED
    print(f"{out}: {_describe(out)}; serve it with bert-serving-start -model_dir {out}")
    return exit_codes.OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bert-serving-convert", description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False
    )
    parser.add_argument("-version", "--version", action="version", version=__version__)
    parser.add_argument("dir", metavar="DIR", help="has vocab.txt, the configuration, the weights")
    parser.add_argument("out", metavar="OUT", help="the directory to write, new or empty")
    parser.add_argument(
        "-ckpt_name",
        "--ckpt-name",
        default=CKPT_NAME,
        metavar="NAME",
        help="name of the weights' files, up to .index (default: %(default)s)",
    )
    parser.add_argument(
        "-config_name",
        "--config-name",
        default=CONFIG_NAME,
        metavar="NAME",
        help="name of the configuration (default: %(default)s)",
    )
    parser.add_argument(
        "-tuned_model_dir",
        "--tuned-model-dir",
        metavar="DIR",
        help="has the weights, fine-tuned; vocabulary and configuration stay those of DIR",
    )
    parser.add_argument(
        "-cased_tokenization",
        "--cased-tokenization",
        action="store_true",
        help="the model's vocabulary is cased: its tokenizer must not lower-case",
    )
    parser.add_argument(
        "-overwrite", "--overwrite", action="store_true", help="replace an earlier conversion"
    )
    return parser


def _check_out(out: Path, *, may_replace: bool) -> None:
    """Refuse to write over anything but an earlier conversion."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ModelLoadError(f"{out} is a file: expected a new or empty directory")
    names = {path.name for path in out.iterdir()}
    if names and not may_replace:
        raise ModelLoadError(f"{out} is not empty: -overwrite replaces an earlier conversion")
    if others := sorted(names - set(CONVERTED_FILES)):
        raise ModelLoadError(
            f"{out} has other files than a conversion's, such as {others[0]}: not overwritten"
        )


def _check_kind(directory: Path, ckpt_name: str, config_name: str) -> None:
    if not is_google_directory(directory, ckpt_name, config_name) and any(
        directory.glob("*.safetensors")
    ):
        raise ModelLoadError(f"{directory} is a Hugging Face directory already: serve it as it is")


def _describe(out: Path) -> str:
    config = json.loads((out / "config.json").read_bytes())
    labels = f", {len(config['id2label'])} labels" if "id2label" in config else ""
    layers, width = config["num_hidden_layers"], config["hidden_size"]
    return f"{layers} layers, {width} dimensions{labels}"


if __name__ == "__main__":
    sys.exit(main())
