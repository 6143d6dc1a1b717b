"""Real tokenizers, trained in a moment, for the three ways in which models cut text into tokens.

gpt2: byte-level BPE behind GPT-2's pattern. llama3: byte-level BPE behind the pattern of Llama 3 and Qwen (digits
apart, newlines glued to punctuation). sentencepiece: BPE over text whose spaces became "▁", as Llama 2 has it.
"""

from functools import cache
from typing import Any

STYLES = ("gpt2", "llama3", "sentencepiece")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ALTERNATING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m['role'] }}] {{ m['content'] | trim }} {% endfor %}"
)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEXT = """Mary went back to the kitchen. John travelled to the garden. Where is Mary? Sandra picked up the apple there.
It was a bright, cold evening in 1984, and the old harbour clock said 12:30! "Well," she said, "we shall see."
Answer with one word only.\n\n<context>\nDaniel left the football.\n</context>\n\nQuestion: Where was the milk before?
The river ran quietly past the mill while two thousand lanterns were being lit along its banks, one after another."""


@cache
def tiny_tokenizer(style: str, *, template: str | None = None, add_bos: bool = False) -> Any:
    """Return a transformers fast tokenizer of one style, with BOS "<s>" and EOS "<|im_end|>"."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    specials = ["<unk>", "<s>", "<|im_start|>", "<|im_end|>"]
    if style == "sentencepiece":
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        alphabet: list[str] = []
        specials += [f"<0x{byte:02X}>" for byte in range(256)]
    else:
        tokenizer = Tokenizer(models.BPE())
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=style == "gpt2")
        split = pre_tokenizers.Split(Regex(_LLAMA3), "isolated")
        tokenizer.pre_tokenizer = byte_level if style == "gpt2" else pre_tokenizers.Sequence([split, byte_level])
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [_TEXT] * 4, trainers.BpeTrainer(vocab_size=800, special_tokens=specials, initial_alphabet=alphabet)
    )
    if style == "sentencepiece":
        # Pieces were learned within words; from here on whole texts are cut, as Llama 2's fast tokenizer does.
        tokenizer.pre_tokenizer = None
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = template
    return fast
