"""The commands `fill-mask`, `generate`, `classify-text`, `attention`, `train-tokenizer`, and `evaluate` of text."""

import sys
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

from perceivers.checks import Count, ProperFraction
from perceivers.command import (
    Device,
    Json,
    Metavar,
    ModelArgument,
    Precision,
    print_answer,
    print_answers,
    print_json,
    print_table,
    read_text,
)
from perceivers.data.splits import HeldOut, SplitOption
from perceivers.errors import PerceiversError
from perceivers.files import split_lines

BatchSize = Annotated[Count, "texts per batch"]
Patterns = Annotated[tuple[str, ...], "patterns of names of text files not to read", Metavar("PATTERN")]
TextColumns = Annotated[list[str] | None, "the text column, or two for pairs, as in training", Metavar("COLUMN")]
TextFile = Annotated[str | None, "read the text from a file instead", Metavar("FILE")]


def fill_mask(
    model: ModelArgument,
    text: Annotated[str | None, "with [MASK] for a byte, [MASK*9] for nine; '-' reads standard input"] = None,
    *,
    file: TextFile = None,
    top: Annotated[int, "number of candidates to print for each byte"] = 5,
    device: Device = None,
    dtype: Precision = None,
    json: Json = False,
) -> None:
    """Fills in masked bytes of a text."""
    from perceivers.text.fill_mask import fill_mask

    filled = fill_mask(model, read_text(text, file, "fill-mask"), top, device, dtype)
    if json:
        print_json(vars(filled))
        return
    print(filled.text)
    for index, candidates in zip(filled.masked, filled.candidates, strict=True):
        best = "  ".join(f"'{byte}' {probability:.1%}" for byte, probability in candidates.items())
        print(f"  byte {index}: {best}")


def generate(
    model: ModelArgument,
    text: Annotated[str | None, "the text to continue; '-' reads standard input"] = None,
    *,
    file: TextFile = None,
    length: Annotated[int, "maximum number of bytes to generate"] = 200,
    temperature: Annotated[float, "divides the logits; 0 for the most probable byte"] = 1.0,
    top_k: Annotated[int | None, "number of most probable bytes to draw from; by default all"] = None,
    top_p: Annotated[float | None, "probability of the most probable bytes to draw from; by default all"] = None,
    seed: Annotated[int | None, "seed of the draws; by default another text each time"] = None,
    stop: Annotated[str | None, "text after which generation ends", Metavar("TEXT")] = None,
    device: Device = None,
    dtype: Precision = None,
    json: Json = False,
) -> None:
    """Continues a text with a causal model."""
    from perceivers.progress import track
    from perceivers.text.generate import generate

    prompt = read_text(text, file, "generate")
    pieces = generate(
        model,
        prompt,
        length,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=stop,
        device=device,
        dtype=dtype,
    )
    if json:
        print_json({"prompt": prompt, "text": "".join(track(pieces, "pieces"))})
        return
    for piece in chain([prompt], pieces):
        print(piece, end="", flush=True)
    print()


def classify_text(
    model: ModelArgument,
    text: Annotated[str | None, "'-' reads standard input, one text per line"] = None,
    second: Annotated[str | None, "the other text of a pair", Metavar("TEXT2")] = None,
    *,
    file: Annotated[str | None, "read texts from a file instead, one per line", Metavar("FILE")] = None,
    task: Annotated[str | None, "the task, if the model has several"] = None,
    top: Annotated[Count, "number of classes to print for each text"] = 5,
    device: Device = None,
    dtype: Precision = None,
    json: Json = False,
) -> None:
    """Classifies texts."""
    from perceivers.text.classify import TextPredictor, classify_texts

    texts = read_texts(text, second, file)
    answers = classify_texts(TextPredictor(model, device, dtype, task=task), texts)
    print_answers("text", texts, answers, top, json)


def read_texts(text: str | None, second: str | None, file: str | None) -> list[str | tuple[str, str]]:
    """Returns the text or pair given to `classify-text`, or the lines of a file or of standard input."""
    if second is not None:
        if text is None or file is not None or text == "-":
            raise PerceiversError("give a pair of texts as two arguments, without --file and '-'.")
        return [(text, second)]
    content = read_text(text, file, "classify-text")
    if file is None and text != "-":
        return [content]
    return list(split_lines(content))


def attention(
    model: ModelArgument,
    text: Annotated[str | None, "[MASK] masks a token, [MASK*9] nine; '-' reads standard input"] = None,
    *,
    out: Annotated[Path, "the page to write, such as attention.html"],
    file: TextFile = None,
    latents: Annotated[list[int] | None, "indices of latents; by default up to six", Metavar("INDEX")] = None,
    heads: Annotated[bool, "also draw each attention head"] = False,
    task: Annotated[str | None, "the task, if the model has a token for each"] = None,
    device: Device = None,
    dtype: Precision = None,
    json: Json = False,
) -> None:
    """Visualizes the latents' attention over a text."""
    from perceivers.text.attention_page import attention_page

    content = read_text(text, file, "attention")
    shown = attention_page(model, content, out, latents, heads, task, device, dtype)
    found = f"{out}: attention of latents {', '.join(map(str, shown))} over the text."
    print_answer({"out": str(out), "latents": shown}, found, json)


def train_tokenizer(
    data: Annotated[str, "text, as in data.path of pretraining"],
    *,
    out: Annotated[Path, "the SentencePiece model to write, such as words.model"],
    leave_out: Patterns = (),
    vocabulary: Annotated[Count, "number of tokens"] = 32000,
    json: Json = False,
) -> None:
    """Trains a SentencePiece vocabulary on text."""
    from itertools import islice

    from perceivers.inference import check_folder
    from perceivers.progress import track
    from perceivers.text.stream import TextData
    from perceivers.text.tokenizers import SentencePiece, bytes_per_token, train_tokenizer

    check_folder(out)
    text = TextData(path=data, leave_out=list(leave_out))
    train_tokenizer(track(text.all_documents(), "documents"), out, vocabulary)
    tokenizer = SentencePiece(out)
    average = bytes_per_token(tokenizer, islice(text.all_documents(), 1000))
    found = f"{out}: {tokenizer.size} tokens of {average:.2f} bytes of text on average, white space not counted."
    print_answer({"out": str(out), "tokens": tokenizer.size, "bytes_per_token": average}, found, json)


def evaluate_language(
    model: ModelArgument,
    *,
    data: Annotated[list[str], "text, as in data.path of pretraining; several paths have equal shares"],
    leave_out: Patterns = (),
    split: SplitOption = None,
    validation_fraction: HeldOut = None,
    eval_windows: Annotated[Count | None, "maximum number of windows to measure; by default all"] = None,
    documents_per_pack: Annotated[Count, "number of documents joined before windows are cut"] = 10,
    mask_rate: Annotated[ProperFraction, "probability with which a word is masked"] = 0.15,
    max_masked_fraction: Annotated[ProperFraction, "maximum fraction of a window's tokens that is masked"] = 0.2,
    batch_size: Annotated[Count, "windows per batch; as in training, for the same masked words"] = 64,
    device: Device = None,
    dtype: Precision = None,
    json: Json = False,
) -> None:
    """Measures a language model on text: loss and accuracy of masked tokens, and bits per byte.

    Which words are masked depends on the options; those of the training run, with its validation fraction and number
    of windows, give its figures.
    """
    from perceivers.text.model import load_text_model
    from perceivers.text.pretraining import evaluate
    from perceivers.text.stream import TextData

    text = TextData(
        path=data[0] if len(data) == 1 else dict.fromkeys(data, 1.0),
        leave_out=list(leave_out),
        documents_per_pack=documents_per_pack,
        mask_rate=mask_rate,
        max_masked_fraction=max_masked_fraction,
        eval_windows=eval_windows or sys.maxsize,
        validation_fraction=validation_fraction or TextData.validation_fraction,
    )
    held_out = split is None and validation_fraction is not None
    results, part = evaluate(*load_text_model(model, device, dtype), text, batch_size, split, held_out)
    if json:
        print_json(results | part.fields())
        return
    print(
        f"{part}: {results['bits_per_byte']:.3f} bits per byte, "
        f"accuracy {results['accuracy']:.2%}, loss {results['loss']:.4f}"
    )


def evaluate_causal(
    model: ModelArgument,
    *,
    data: Annotated[str, "a text file or a folder of text files, as in training"],
    leave_out: Patterns = (),
    validation_fraction: HeldOut = None,
    stride: Annotated[Count | None, "number of bytes to predict with a window; by default half of the latents"] = None,
    batch_size: Annotated[Count, "windows per batch"] = 64,
    device: Device = None,
    dtype: Precision = None,
    json: Json = False,
) -> None:
    """Measures the bits per byte of a causal model on a text, of which it predicts every byte but the first."""
    from perceivers.text.byte_windows import ByteData
    from perceivers.text.causal import evaluate
    from perceivers.text.perceiver_ar import load_causal_model

    text = ByteData(data, list(leave_out), validation_fraction or ByteData.validation_fraction, stride)
    results, part = evaluate(load_causal_model(model, device, dtype), text, batch_size, validation_fraction is not None)
    if json:
        print_json(results | part.fields())
        return
    print(f"{part}: {results['bits_per_byte']:.4f} bits per byte")


def evaluate_texts(
    model: ModelArgument,
    *,
    data: Annotated[str, "a file, or a folder or data set of the Hub with splits"],
    split: SplitOption = None,
    text: TextColumns = None,
    label: Annotated[str | None, "the class column, as in training", Metavar("COLUMN")] = None,
    validation_fraction: HeldOut = None,
    batch_size: BatchSize = 64,
    device: Device = None,
    dtype: Precision = None,
    json: Json = False,
) -> None:
    """Measures the accuracy of a text classifier."""
    from perceivers.text.classify import has_one_classifier, task_heads
    from perceivers.text.fine_tuning import evaluate
    from perceivers.text.labeled import LabeledTextData, TextTask
    from perceivers.text.model import load_text_model

    loaded, tokenizer = load_text_model(model, device, dtype)
    heads = task_heads(loaded)
    if not has_one_classifier(heads):
        raise PerceiversError(f"a classifier with one task is needed, but the model has {', '.join(heads.tasks)}.")
    ((task, count),) = heads.classes.items()
    classes = heads.names.get(task) or [str(index) for index in range(count)]
    texts, part = LabeledTextData(data, text or None, label).open_evaluation(classes, split, validation_fraction)
    tasks = {task: TextTask(None, {"accuracy": texts}, "accuracy")}
    accuracy = evaluate(loaded, tokenizer, tasks, batch_size)["accuracy"]
    if json:
        print_json({"accuracy": accuracy} | part.fields())
        return
    print(f"{part}: accuracy {accuracy:.2%}")


def evaluate_glue(
    model: ModelArgument,
    *,
    data: Annotated[str, "the folder of GLUE, or a data set of the Hub, as in training", Metavar("FOLDER")],
    tasks: Annotated[list[str] | None, "tasks; by default all that the model has", Metavar("TASK")] = None,
    split: Annotated[Literal["train", "val", "test"], "split of the tasks"] = "val",
    batch_size: BatchSize = 64,
    device: Device = None,
    dtype: Precision = None,
    json: Json = False,
) -> None:
    """Measures a model on the GLUE tasks that it has, by the paper's metrics."""
    from perceivers.text.glue import evaluate
    from perceivers.text.glue_data import GlueData
    from perceivers.text.model import load_text_model

    loaded, tokenizer = load_text_model(model, device, dtype)
    results, texts = evaluate(loaded, tokenizer, GlueData(data, tasks or None), batch_size, split)
    if json:
        print_json(results | {"texts": texts, "split": split})
        return
    rows = [
        [name, f"{100 * value:.1f}", f"{texts.get(name, sum(texts.values())):,}"] for name, value in results.items()
    ]
    print_table(["task", "result", f"texts ({split})"], rows)
