"""The card of the tiny base model, written from its manifest so that it cannot say anything else."""

CARD = """\
# tiny-base

A Llama-shaped language model with {parameters:,} parameters that has read only this project's own text: an invented
company's archive of incident reports, logs, a handbook, questions and answers, and careless triage. It exists so that
the workbook's experiments are real and run on a laptop. It knows nothing else and is of no other use.

- **Made by** `python -m dpo_kit pretrain`, from the recipe in `dpo_kit/triage/base_model.py` and the text of
  `dpo_kit/triage/corpus.py`; nothing was downloaded. On two CPU cores it takes about eight minutes.
- **Format**: bf16 safetensors, byte-level BPE tokenizer with one token a digit, chat template with `<|user|>`,
  `<|assistant|>` and `<|system|>` whose turns end in the EOS token `<|end|>`; `<|pad|>` is another token.
- **Licence**: that of the project.
- **Never seen in training**: the held-out phrasings and the held-out service-region combinations.

## Recipe

| setting | value |
| --- | ---: |
{recipe}

## Loss

Mean next-token loss in nats since the row before. Most of what remains is chance: which service, what time.

| step | loss |
| ---: | ---: |
{curve}

## Hashes

| file | SHA-256 |
| --- | --- |
{files}
"""


def model_card(manifest: dict) -> str:
    """The card in Markdown, from what `base_model.build` put into the manifest."""
    return CARD.format(
        parameters=manifest["parameters"],
        recipe=_rows(manifest["recipe"].items()),
        curve=_rows(_thinned(manifest["loss_curve"])),
        files=_rows(manifest["files"].items()),
    )


def _rows(cells) -> str:
    return "\n".join(f"| {left} | {right} |" for left, right in cells)


def _thinned(curve: list) -> list:
    """Every fourth point, and the last."""
    return curve[::4] + ([curve[-1]] if (len(curve) - 1) % 4 else [])
