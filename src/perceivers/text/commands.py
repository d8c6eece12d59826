"""The commands of text: `fill-mask`, `classify-text`, `attention`, `train-tokenizer`, and `evaluate` for its models."""

from pathlib import Path
from typing import Annotated

from perceivers.checks import Count, ProperFraction
from perceivers.command import (
    Device,
    Json,
    Metavar,
    ModelArgument,
    Precision,
    print_classes,
    print_json,
    print_table,
    read_text,
)
from perceivers.errors import PerceiversError

BatchSize = Annotated[Count, "texts computed at a time"]
TextFile = Annotated[str | None, "read the text from a file instead", Metavar("FILE")]


def fill_mask(
    model: ModelArgument,
    text: Annotated[str | None, "with [MASK] for a byte, [MASK*9] for nine; '-' reads standard input"] = None,
    *,
    file: TextFile = None,
    top: Annotated[int, "how many candidates to print for each byte"] = 5,
    device: Device = None,
    dtype: Precision = None,
    json: Json = False,
) -> None:
    """Fills in masked bytes of a text."""
    from dataclasses import asdict

    from perceivers.text.fill_mask import fill_mask

    filled = fill_mask(model, read_text(text, file, "fill-mask"), top, device, dtype)
    if json:
        print_json(asdict(filled))
        return
    print(filled.text)
    for place, candidates in zip(filled.masked, filled.candidates, strict=True):
        best = "  ".join(f"'{byte}' {probability:.1%}" for byte, probability in candidates.items())
        print(f"  byte {place}: {best}")


def classify_text(
    model: ModelArgument,
    text: Annotated[str | None, "'-' reads standard input, one text a line"] = None,
    second: Annotated[str | None, "the other text of a pair", Metavar("TEXT2")] = None,
    *,
    file: Annotated[str | None, "read texts from a file instead, one a line", Metavar("FILE")] = None,
    task: Annotated[str | None, "which of the model's tasks, if it has several"] = None,
    top: Annotated[Count, "how many classes to print for each text"] = 5,
    device: Device = None,
    dtype: Precision = None,
    json: Json = False,
) -> None:
    """Says of which class texts are."""
    from perceivers.text.classify import SCORE, classify_text

    texts = read_texts(text, second, file)
    answers = [
        answer if SCORE in answer else dict(list(answer.items())[:top])
        for answer in classify_text(model, texts, task, device, dtype)
    ]
    if json:
        print_json(
            [
                {"text": given} | (answer if SCORE in answer else {"classes": answer})
                for given, answer in zip(texts, answers, strict=True)
            ]
        )
        return
    for given, answer in zip(texts, answers, strict=True):
        print(given if isinstance(given, str) else "\n".join(given))
        if SCORE in answer:
            print(f"  {answer[SCORE]:.4f}")
        else:
            print_classes(answer)


def read_texts(text: str | None, second: str | None, file: str | None) -> list[str | tuple[str, str]]:
    """Returns the text of `classify-text`, the pair, or the lines of a file or of standard input."""
    if second is not None:
        if text is None or file is not None or text == "-":
            raise PerceiversError("a pair of texts is given as two arguments, without --file and '-'.")
        return [(text, second)]
    content = read_text(text, file, "classify-text")
    if file is None and text != "-":
        return [content]
    return [line.removesuffix("\r") for line in content.split("\n")]


def attention(
    model: ModelArgument,
    text: Annotated[str | None, "[MASK] masks a token, [MASK*9] nine; '-' reads standard input"] = None,
    *,
    out: Annotated[Path, "the page to write, such as attention.html"],
    file: TextFile = None,
    latents: Annotated[
        list[int] | None, "which latents; up to six that differ, if not given", Metavar("NUMBER")
    ] = None,
    heads: Annotated[bool, "also draw each head of the attention"] = False,
    task: Annotated[str | None, "which task the model is to do, if it reads texts differently for each"] = None,
    device: Device = None,
    dtype: Precision = None,
) -> None:
    """Draws what latents read of a text."""
    from perceivers.text.attention_page import attention_page

    content = read_text(text, file, "attention")
    shown = attention_page(model, content, out, latents, heads, task, device, dtype)
    print(f"{out}: what latents {', '.join(map(str, shown))} read of the text.")


def train_tokenizer(
    data: Annotated[str, "text, as in data.path of a pretraining run"],
    *,
    out: Annotated[Path, "the SentencePiece model to write, such as words.model"],
    leave_out: Annotated[tuple[str, ...], "names of text files not to read", Metavar("PATTERN")] = (),
    vocabulary: Annotated[Count, "number of tokens"] = 32000,
) -> None:
    """Makes a vocabulary of pieces of words from text."""
    from itertools import islice

    from perceivers.inference import check_folder
    from perceivers.text.stream import TextData
    from perceivers.text.tokenizers import SentencePiece, bytes_per_token, train_tokenizer

    check_folder(out)
    text = TextData(path=data, leave_out=list(leave_out))
    train_tokenizer(text.documents_once(), out, vocabulary)
    tokenizer = SentencePiece(out)
    average = bytes_per_token(tokenizer, islice(text.documents_once(), 1000))
    print(f"{out}: {tokenizer.size} tokens of {average:.2f} bytes of text on average, white space not counted.")


def evaluate_language(
    model: ModelArgument,
    *,
    data: Annotated[list[str], "text, as in data.path of a pretraining run; several at once, if they had shares there"],
    leave_out: Annotated[tuple[str, ...], "names of text files not to read", Metavar("PATTERN")] = (),
    held_out: Annotated[ProperFraction, "part of text files that training kept for evaluation, which is read"] = 0.02,
    windows: Annotated[Count, "how many windows of text to read at most"] = 1024,
    documents: Annotated[Count, "how many are joined before windows are cut from them"] = 10,
    masked: Annotated[ProperFraction, "probability with which a word is hidden"] = 0.15,
    decoded: Annotated[ProperFraction, "largest part of a window's tokens that is hidden"] = 0.2,
    batch_size: Annotated[Count, "windows computed at a time; as in training, for the same hidden words"] = 64,
    device: Device = None,
    dtype: Precision = None,
    json: Json = False,
) -> None:
    """Measures a language model on held-out text: loss and accuracy of hidden tokens, and bits per byte of their words.

    What is read, and what is hidden of it, depends on the options; those of the training run give its own figures.
    """
    from perceivers.text.loading import load_text_model_to
    from perceivers.text.pretraining import evaluate
    from perceivers.text.stream import TextData

    text = TextData(
        path=data[0] if len(data) == 1 else dict.fromkeys(data, 1.0),
        leave_out=list(leave_out),
        documents=documents,
        masked=masked,
        decoded=decoded,
        held_out=held_out,
        evaluated=windows,
    )
    results = evaluate(*load_text_model_to(model, device, dtype), text, batch_size)
    if json:
        print_json(results)
        return
    print(
        f"{results['windows']} windows of text kept for evaluation: {results['bits_per_byte']:.3f} bits per byte, "
        f"accuracy {results['accuracy']:.2%}, loss {results['loss']:.4f}"
    )


def evaluate_texts(
    model: ModelArgument,
    *,
    data: Annotated[str, "a file, all of it; or a folder or data set of the hub, its split for evaluation"],
    text: Annotated[
        list[str] | None, "column with the text, or two for pairs; as in training", Metavar("COLUMN")
    ] = None,
    label: Annotated[str | None, "column with the class; as in training", Metavar("COLUMN")] = None,
    held_out: Annotated[
        ProperFraction | None, "without a split for evaluation: only the part that training kept, its data.held_out"
    ] = None,
    batch_size: BatchSize = 64,
    device: Device = None,
    dtype: Precision = None,
    json: Json = False,
) -> None:
    """Measures a classifier of texts: its accuracy."""
    from perceivers.text.fine_tuning import evaluate_classes
    from perceivers.text.labelled import LabelledTextData
    from perceivers.text.loading import load_text_model_to

    given = LabelledTextData(data, text or None, label)
    results, which = evaluate_classes(*load_text_model_to(model, device, dtype), given, held_out, batch_size)
    if json:
        print_json(results | {"data": which})
        return
    print(f"{which}, {results['texts']} texts: accuracy {results['accuracy']:.2%}")


def evaluate_glue(
    model: ModelArgument,
    *,
    data: Annotated[str, "the folder of GLUE, or a data set of the hub, as in data.path of a run", Metavar("FOLDER")],
    tasks: Annotated[list[str] | None, "which tasks; the model's, if not given", Metavar("TASK")] = None,
    batch_size: BatchSize = 64,
    device: Device = None,
    dtype: Precision = None,
    json: Json = False,
) -> None:
    """Measures a model on the GLUE tasks that it has, each by the metric that the paper judges it by."""
    from perceivers.text.glue import evaluate
    from perceivers.text.glue_data import GlueData
    from perceivers.text.loading import load_text_model_to

    results = evaluate(*load_text_model_to(model, device, dtype), GlueData(data, tasks or None), batch_size)
    if json:
        print_json(results)
        return
    print_table(["task", "result"], [[name, f"{100 * value:.1f}"] for name, value in results.items()])
