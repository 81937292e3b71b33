"""Makes the bundled subject model `tiny` from text that every CPython ships: `python scripts/make_tiny.py`.

A Llama-shaped language model with grouped-query attention and its own byte-level BPE tokenizer, trained on the language
reference, docstrings and source of the standard library. Held out: every document of corpus `pydoc` that is not in
split `train` (docstrings are cut out of their modules' source), and a tenth of the modules. Writes the model (float16
safetensors), the tokenizer and the card with every figure into `diff_oracle/assets/tiny/`. Half an hour on 2 cores.
`--measure` only measures the model that is there and writes its card's figures anew.
Needs torch 2.9 or newer for its Muon optimiser.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import platform
from collections import Counter
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from data_gen.corpus import pydoc_documents, stdlib_sources
from diff_oracle.records import git_commit, split_of

BOS, PAD = "<|endoftext|>", "<|pad|>"
OUT = Path(__file__).parents[1] / "diff_oracle" / "assets" / "tiny"


def collect() -> tuple[list[str], list[str]]:
    """(training texts, held-out texts); prose is said three times in training."""
    documents = list(pydoc_documents())
    train = 2 * [d.text for d in documents if split_of(d.text) == "train"]  # docstrings are in the source a third time
    train += [d.text for d in documents if split_of(d.text) == "train" and d.doc_id.startswith("topics/")]
    heldout = [d.text for d in documents if split_of(d.text) != "train"]
    for name, source in stdlib_sources():
        if split_of(name) == "select":
            heldout.append(without_docstrings(source, of_split_train=True))
        else:
            train.append(without_docstrings(source, of_split_train=False))
    return train, heldout


def without_docstrings(source: str, of_split_train: bool) -> str:
    """The source less every docstring that is, as a document, in split `train`, or every one that is not."""
    lines: list[str | None] = list(source.splitlines(keepends=True))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and (split_of(text) == "train") == of_split_train:
                literal = node.body[0]
                lines[literal.lineno - 1 : literal.end_lineno] = [None] * (literal.end_lineno - literal.lineno + 1)
    return "".join(line for line in lines if line is not None)


def make_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that puts one BOS first."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[BOS, PAD], initial_alphabet=alphabet)
    )
    bpe.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=BOS, eos_token=BOS, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def token_stream(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """All texts as one row of ids, each begun by BOS."""
    rows = tokenizer(texts)["input_ids"]
    return torch.tensor([i for row in rows for i in row])


def windows(stream: torch.Tensor, starts: torch.Tensor, length: int) -> torch.Tensor:
    """[len(starts), length] windows of the stream; the first token of each is BOS, as at use."""
    rows = stream[starts[:, None] + torch.arange(length)]
    rows[:, 0] = 0
    return rows


def train(model: LlamaForCausalLM, stream: torch.Tensor, steps: int, batch: int, length: int, seed: int) -> None:
    """Muon on matrices, AdamW on the rest; linear warm-up, constant, then linear decay over the second half."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "embed" not in n)]
    optimizers = [
        torch.optim.Muon(matrices, lr=4e-3, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=4e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda step: min(1.0, (step + 1) / 50, 2 * (1 - step / steps)))
        for o in optimizers
    ]
    generator = torch.Generator().manual_seed(seed)
    bar = tqdm(range(steps), unit=" steps")
    for _ in bar:
        rows = windows(stream, torch.randint(len(stream) - length, (batch,), generator=generator), length)
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        bar.set_postfix(loss=f"{loss.item():.3f}")


def ngram_losses(train_ids: torch.Tensor, heldout: torch.Tensor) -> dict[str, float]:
    """Held-out nats a token of interpolated n-gram models, on the same windows as the model.

    Absolute discounting (0.75), each order backing off to the one below, the unigram add-one smoothed: the usual strong
    baseline short of Kneser-Ney's continuation counts.
    """
    ids = train_ids.tolist()
    vocab = int(max(train_ids.max(), heldout.max())) + 1
    counts = [Counter(zip(*(ids[i:] for i in range(n)), strict=False)) for n in (1, 2, 3)]
    contexts: list[Counter[tuple[int, ...]]] = [Counter(), Counter(), Counter()]
    kinds: list[Counter[tuple[int, ...]]] = [Counter(), Counter(), Counter()]
    for n in range(3):
        for gram, count in counts[n].items():
            contexts[n][gram[:-1]] += count
            kinds[n][gram[:-1]] += 1

    def probability(gram: tuple[int, ...]) -> float:
        n = len(gram) - 1
        if n == 0:
            return (counts[0][gram] + 1) / (len(ids) + vocab)
        lower, total = probability(gram[1:]), contexts[n][gram[:-1]]
        if not total:
            return lower
        return max(counts[n][gram] - 0.75, 0) / total + 0.75 * kinds[n][gram[:-1]] / total * lower

    sums = [0.0, 0.0, 0.0]
    rows = heldout.tolist()
    for row in rows:
        for t in range(1, len(row)):
            for n in range(3):
                sums[n] -= math.log(probability(tuple(row[max(0, t - n) : t + 1])))
    total = sum(len(row) - 1 for row in rows)
    return {name: s / total for name, s in zip(("unigram", "bigram", "trigram"), sums, strict=True)}


@torch.no_grad()
def induction_scores(model: LlamaForCausalLM, length: int = 48, batch: int = 16) -> dict[str, float]:
    """On random tokens said twice: the best head's attention to the token after the first saying, and both losses."""
    generator = torch.Generator().manual_seed(1)
    half = torch.randint(300, model.config.vocab_size, (batch, length), generator=generator)
    rows = torch.cat([torch.zeros(batch, 1, dtype=torch.long), half, half], 1)
    out = model(input_ids=rows, output_attentions=True)
    queries = torch.arange(length + 1, 2 * length + 1)
    scores = torch.stack([a[:, :, queries, queries - length + 1].mean((0, 2)) for a in out.attentions])
    losses = torch.nn.functional.cross_entropy(out.logits[:, :-1].transpose(1, 2), rows[:, 1:], reduction="none")
    return {
        "best_head_attention": scores.max().item(),
        "best_head": f"L{scores.argmax() // scores.shape[1]}H{scores.argmax() % scores.shape[1]}",
        "loss_first_saying": losses[:, 1:length].mean().item(),
        "loss_second_saying": losses[:, length + 1 :].mean().item(),
    }


@torch.no_grad()
def measure(
    model: LlamaForCausalLM, train_ids: torch.Tensor, heldout_ids: torch.Tensor, length: int
) -> dict[str, object]:
    """The card's figures: held-out losses of model and n-grams on the same windows, and induction."""
    starts = torch.linspace(0, len(heldout_ids) - length - 1, 400).long()  # spread over all held-out text
    rows = windows(heldout_ids, starts, length)
    model.set_attn_implementation("sdpa")
    loss = torch.stack([model(input_ids=r, labels=r).loss for r in rows.split(20)]).mean().item()
    figures = {"model": loss, **ngram_losses(train_ids, rows)}
    model.set_attn_implementation("eager")
    return {
        "measured_at_commit": git_commit(),
        "heldout_tokens": rows.numel() - len(rows),
        "heldout_nats_per_token": figures,
        "induction": induction_scores(model),
    }


def main() -> None:
    """Trains, measures, and writes the model and its card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--measure", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    batch, length = 8, 256
    train_texts, heldout_texts = collect()
    if args.measure:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.out)
        train_ids, heldout_ids = token_stream(tokenizer, train_texts), token_stream(tokenizer, heldout_texts)
        model = LlamaForCausalLM.from_pretrained(args.out, dtype=torch.float32).eval()
        card = json.loads((args.out / "card.json").read_text()) | measure(model, train_ids, heldout_ids, length)
        (args.out / "card.json").write_text(json.dumps(card, indent=2) + "\n")
        print(json.dumps(card, indent=2))
        return
    tokenizer = make_tokenizer(train_texts, vocab_size=4096)
    train_ids, heldout_ids = token_stream(tokenizer, train_texts), token_stream(tokenizer, heldout_texts)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=4, head_dim=32, max_position_embeddings=1024, tie_word_embeddings=True, bos_token_id=0,
        eos_token_id=0, pad_token_id=1, attn_implementation="sdpa",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(train_ids):,} training tokens")
    train(model, train_ids, args.steps, batch, length, seed=0)
    model = model.half().float().eval()  # what is measured is what is saved
    figures = measure(model, train_ids, heldout_ids, length)
    args.out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    card = {
        "data": "CPython's language reference (pydoc_data.topics), docstrings and standard library source; held out: "
        "the documents of corpus pydoc outside split train, and a tenth of the modules",
        "licence_of_the_data": "PSF",
        "command": f"python scripts/make_tiny.py --steps {args.steps}",
        "commit": git_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "seed": 0,
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_tokens": len(train_ids),
        "tokens_seen": args.steps * batch * length,
        "steps": args.steps,
        **figures,
    }
    (args.out / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    main()
